"""Idempotency keys where the database has trouble: a lost COMMIT is looked up, a fault is no reply."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from microkit.db import CommitUnknown, Database, Transaction
from tests.contract.web.charging import Desk, app_of, ask, count

pytestmark = pytest.mark.anyio


class LosesCommits:
    """A database whose connection is lost while COMMIT is under way, once: before or after it took effect."""

    def __init__(self, database: Database, *, committed: bool) -> None:
        self._database = database
        self._committed = committed
        self._lost = False
        self.dialect = database.dialect
        self.reads_apart = database.reads_apart
        self.expected_wait, self.typical_use = database.expected_wait, database.typical_use

    async def run(self, work: Callable[[Transaction], Awaitable[Any]], **options: Any) -> Any:
        if self._lost:
            return await self._database.run(work, **options)
        self._lost = True
        with suppress(RollBack):
            async with self._database.transaction() as tx:
                await work(tx)
                if not self._committed:
                    raise RollBack
        raise CommitUnknown


class RollBack(Exception): ...


@pytest.mark.parametrize("committed", [True, False])
async def test_a_commit_whose_outcome_is_unknown_is_looked_up_by_the_key(committed: bool, charged: Database) -> None:
    desk = Desk()
    app = app_of(desk, LosesCommits(charged, committed=committed))  # type: ignore[arg-type]
    reply = await ask(app, {"amount": 5})
    assert reply.status == 201
    assert reply.replayed is committed
    assert await count(charged) == 1


async def test_a_commit_whose_outcome_is_unknown_is_a_problem_that_says_so(charged: Database) -> None:
    app = app_of(Desk(), LosesCommits(charged, committed=True))  # type: ignore[arg-type]
    reply = await ask(app, {"amount": 5}, None)
    assert (reply.status, reply.json["type"]) == (500, "urn:problem:outcome-unknown")


async def test_a_fault_of_the_database_is_no_reply_to_remember(charged: Database) -> None:
    desk = Desk()

    async def fail() -> None:
        raise OperationalError("INSERT", {}, Exception("disk full"))

    desk.before = fail
    app = app_of(desk, charged)
    assert (await ask(app, {"amount": 5})).status == 500
    desk.before = None
    assert (await ask(app, {"amount": 5})).status == 201
