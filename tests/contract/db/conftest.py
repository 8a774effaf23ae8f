"""One small table, on both databases."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

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
