"""Transactions, on SQLite and on PostgreSQL."""

from __future__ import annotations

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from microkit.db import Database

pytestmark = pytest.mark.anyio


class Base(DeclarativeBase): ...


class Coin(Base):
    __tablename__ = "coin"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


@pytest.fixture
async def coins(database: Database) -> Database:
    async with database.engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    return database


async def count(database: Database) -> int:
    async with database.transaction(read_only=True) as tx:
        return await tx.scalar(select(func.count()).select_from(Coin)) or 0


async def test_what_a_block_adds_is_committed_when_it_ends(coins: Database) -> None:
    async with coins.transaction() as tx:
        tx.add(Coin(id=1, name="cowrie"))
    assert await count(coins) == 1


async def test_what_a_block_adds_is_gone_when_it_raises(coins: Database) -> None:
    with pytest.raises(RuntimeError, match="no"):
        async with coins.transaction() as tx:
            tx.add(Coin(id=1, name="cowrie"))
            await tx.flush()
            raise RuntimeError("no")
    assert await count(coins) == 0
