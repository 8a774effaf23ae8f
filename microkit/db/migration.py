"""Bringing a database's tables to the state that the program needs."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import MetaData

from microkit.db.database import Database


async def create_tables(database: Database, tables: MetaData | Sequence[MetaData]) -> None:
    """Creates the tables that are missing; for tests, and for services in development that have no scripts yet.

    It never changes a table that exists.
    """
    async with database.engine.begin() as connection:
        for metadata in [tables] if isinstance(tables, MetaData) else tables:
            await connection.run_sync(metadata.create_all)
