"""Keyset pagination."""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import BigInteger, DateTime, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from microkit.db import Database
from microkit.db.migration import create_tables
from microkit.errors import BadRequest, DefinitionError
from microkit.page import PageRequest, cursor_after

pytestmark = pytest.mark.anyio

START = datetime(2026, 1, 1, tzinfo=UTC)


class Base(DeclarativeBase): ...


class BillRow(Base):
    __tablename__ = "bill"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    note: Mapped[str | None]


@pytest.fixture
async def bills(database: Database) -> Database:
    """Twenty-five bills, of which five at a time share a moment."""
    await create_tables(database, Base.metadata)
    async with database.transaction() as tx:
        tx.add_all(
            [BillRow(id=UUID(int=n * 7919 % 10007), at=START + timedelta(microseconds=n // 5)) for n in range(25)]
        )
    return database


async def walk(bills: Database, descending: bool, limit: int) -> list[UUID]:
    seen: list[UUID] = []
    cursor: str | None = None
    while True:
        async with bills.transaction(read_only=True) as tx:
            items, cursor = await tx.page(
                select(BillRow),
                PageRequest(limit=limit, cursor=cursor),
                by=(BillRow.at, BillRow.id),
                descending=descending,
            )
        assert len(items) <= limit
        seen += [item.id for item in items]
        if cursor is None:
            return seen


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("limit", [1, 4, 5, 24, 25, 100])
async def test_a_walk_meets_each_row_once_and_in_order(bills: Database, descending: bool, limit: int) -> None:
    async with bills.transaction(read_only=True) as tx:
        order = (BillRow.at.desc(), BillRow.id.desc()) if descending else (BillRow.at, BillRow.id)
        everything = list(await tx.scalars(select(BillRow.id).order_by(*order)))
    assert await walk(bills, descending, limit) == everything


async def test_rows_that_come_and_go_behind_the_cursor_shift_nothing(bills: Database) -> None:
    async with bills.transaction(read_only=True) as tx:
        first, cursor = await tx.page(select(BillRow), PageRequest(limit=5), by=(BillRow.at, BillRow.id))
    async with bills.transaction() as tx:
        for bill in first[:3]:
            found = await tx.get(BillRow, bill.id)
            await tx.delete(found)
        tx.add(BillRow(id=UUID(int=1), at=START - timedelta(days=1)))
    async with bills.transaction(read_only=True) as tx:
        second, _ = await tx.page(select(BillRow), PageRequest(limit=5, cursor=cursor), by=(BillRow.at, BillRow.id))
    assert {bill.at for bill in second} == {START + timedelta(microseconds=1)}


async def test_the_conditions_of_the_select_hold_on_every_page(bills: Database) -> None:
    statement = select(BillRow.id).where(BillRow.at >= START + timedelta(microseconds=3))
    async with bills.transaction(read_only=True) as tx:
        first, cursor = await tx.page(statement, PageRequest(limit=6), by=(BillRow.at, BillRow.id))
        second, end = await tx.page(statement, PageRequest(limit=6, cursor=cursor), by=(BillRow.at, BillRow.id))
    assert len(first) == 6
    assert len(second) == 4
    assert end is None
    assert all(isinstance(each, UUID) for each in first)


async def test_an_empty_table_is_one_empty_page(bills: Database) -> None:
    async with bills.transaction(read_only=True) as tx:
        nothing = select(BillRow).where(BillRow.note == "x")
        assert await tx.page(nothing, PageRequest(), by=(BillRow.id,)) == ([], None)


@pytest.mark.parametrize(
    "cursor",
    ["", "x", "%%%", "bm90IGpzb24", cursor_after([1]), cursor_after(["2026-01-01T00:00:00Z", "no uuid"]), "é", "W10"],
)
async def test_a_cursor_that_is_not_ours_is_a_bad_request(bills: Database, cursor: str) -> None:
    async with bills.transaction(read_only=True) as tx:
        with pytest.raises(BadRequest, match="cursor"):
            await tx.page(select(BillRow), PageRequest(cursor=cursor), by=(BillRow.at, BillRow.id))


NOBODY = "00000000-0000-0000-0000-000000000000"


@pytest.mark.parametrize(
    "key",
    [
        ["2026-01-01T00:00:00", NOBODY],
        ["2026-01-01", NOBODY],
        ["9999-12-31T23:59:59-12:00", NOBODY],
        ["0001-01-01T00:00:00+14:00", NOBODY],
    ],
)
async def test_a_cursor_with_a_time_that_no_row_can_have_is_a_bad_request(bills: Database, key: list[object]) -> None:
    async with bills.transaction(read_only=True) as tx:
        with pytest.raises(BadRequest, match="cursor"):
            await tx.page(select(BillRow), PageRequest(cursor=cursor_after(key)), by=(BillRow.at, BillRow.id))


class CountedRow(Base):
    __tablename__ = "counted"

    name: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(BigInteger)
    small: Mapped[int]


@pytest.mark.parametrize(
    ("number", "small", "name"),
    [(2**63, 1, "x"), (-(2**70), 1, "x"), (1, 2**63, "x"), (1, 1, "a\0b"), (1, 1, "\ud800")],
)
async def test_a_cursor_with_what_no_column_can_hold_is_a_bad_request(
    bills: Database, number: int, small: int, name: str
) -> None:
    cursor = urlsafe_b64encode(json.dumps([number, small, name]).encode()).rstrip(b"=").decode()
    async with bills.transaction(read_only=True) as tx:
        by = (CountedRow.number, CountedRow.small, CountedRow.name)
        with pytest.raises(BadRequest, match="cursor"):
            await tx.page(select(CountedRow), PageRequest(cursor=cursor), by=by)


async def test_a_cursor_may_lie_beyond_the_integers_of_its_column(bills: Database) -> None:
    request = PageRequest(cursor=cursor_after([1, 2**31, "x"]))
    async with bills.transaction() as tx:
        tx.add_all([CountedRow(name=name, number=number, small=7) for name, number in (("a", 1), ("b", 2))])
        by = (CountedRow.number, CountedRow.small, CountedRow.name)
        items, _ = await tx.page(select(CountedRow.name), request, by=by)
    assert items == ["b"]


async def test_a_column_that_may_be_null_cannot_be_sorted_by(bills: Database) -> None:
    by: Any
    async with bills.transaction(read_only=True) as tx:
        for by in ((), (BillRow.note, BillRow.id)):
            with pytest.raises(DefinitionError, match="NULL"):
                await tx.page(select(BillRow), PageRequest(), by=by)
