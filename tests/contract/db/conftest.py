"""One small table, on both databases."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from microkit.db import Database
from microkit.db.migration import create_tables


class Base(DeclarativeBase): ...


class CoinRow(Base):
    __tablename__ = "coin"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


@pytest.fixture
def coin() -> type[CoinRow]:
    return CoinRow


@pytest.fixture
async def coins(database: Database) -> Database:
    """A database with the empty table ``coin``."""
    await create_tables(database, Base.metadata)
    return database


@pytest.fixture
def count() -> Callable[[Database], Awaitable[int]]:
    """How many coins there are."""

    async def counted(database: Database) -> int:
        async with database.transaction(read_only=True) as tx:
            return await tx.scalar(select(func.count()).select_from(CoinRow)) or 0

    return counted


@pytest.fixture
def postgres_role_url(postgres_cluster: Any) -> Iterator[str]:
    """The URL of an empty database for a user whose password the server wants to see."""
    rules = Path(postgres_cluster.psql("SHOW hba_file"))
    before = rules.read_text()
    name = postgres_cluster.create()
    postgres_cluster.psql("CREATE ROLE guarded LOGIN PASSWORD 'the right password'")
    rules.write_text("local all guarded scram-sha-256\n" + before)
    postgres_cluster.psql("SELECT pg_reload_conf()")
    yield str(postgres_cluster.url(name)).replace("://postgres@", "://guarded:the%20right%20password@")
    rules.write_text(before)
    postgres_cluster.psql("SELECT pg_reload_conf()")
    postgres_cluster.psql("DROP ROLE guarded")
    postgres_cluster.drop(name)
