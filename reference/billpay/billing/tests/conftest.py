"""What the tests of billing share: its own database."""

from __future__ import annotations

from pathlib import Path

import pytest

from microkit.db import Database
from microkit.db.migration import migrate
from microkit.outbox import install
from reference.billpay.billing import service as billing_service


@pytest.fixture
async def db(anyio_backend: str, database: Database) -> Database:
    await migrate(database, Path(billing_service.__file__).parent / "migrations")
    install(database, "billing")
    return database
