"""A database with the outbox's tables, and what publishes into it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from microkit.db import Database
from microkit.outbox import install
from microkit.outbox.tables import metadata
from microkit.telemetry import Telemetry


@pytest.fixture
async def outbox_database(database: Database) -> Database:
    async with database.engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    install(database, "billing")
    return database


@pytest.fixture
async def another(outbox_database: Database, database_url: str) -> AsyncIterator[Callable[[], Any]]:
    """Opens the same database again, as another process would."""
    opened: list[Database] = []

    async def make() -> Database:
        database = Database(database_url, telemetry=Telemetry("another"))
        await database.start()
        install(database, "billing")
        opened.append(database)
        return database

    yield make
    for database in opened:
        await database.close()
