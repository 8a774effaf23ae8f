"""The saga engine on both databases."""

from __future__ import annotations

import pytest

from microkit.db import Database
from tests.contract.saga.trips import Bench


@pytest.fixture
async def bench(database: Database) -> Bench:
    made = Bench(database)
    await made.prepare()
    return made
