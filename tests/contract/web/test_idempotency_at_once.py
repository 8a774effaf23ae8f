"""Requests with one idempotency key that are under way at the same time."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import update

from microkit.db import Database
from microkit.errors import Conflict
from microkit.web import WebApp
from microkit.web.tables import idempotency
from tests.contract.web.charging import Desk, Reply, app_of, ask, count

pytestmark = pytest.mark.anyio


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("microkit.web.idempotency.PATIENCE", 0.05)


@pytest.mark.usefixtures("impatient")
async def test_while_the_first_is_under_way_the_second_is_told_to_wait(charged: Database) -> None:
    desk = Desk()
    entered, leave = desk.hold()
    app = app_of(desk, charged)
    first = asyncio.create_task(ask(app, {"amount": 5}))
    await entered.wait()
    second = await ask(app, {"amount": 5})
    assert (second.status, second.json["type"]) == (409, "urn:problem:request-in-flight")
    assert second.headers["retry-after"] == "1"
    leave.set()
    assert (await first).status == 201
    assert (await ask(app, {"amount": 5})).replayed


@pytest.mark.usefixtures("impatient")
async def test_while_another_instance_is_at_it_the_second_is_told_to_wait(charged: Database) -> None:
    if charged.dialect == "sqlite":
        pytest.skip("SQLite has one writer: the second instance waits for the first one's transaction")
    desk = Desk()
    entered, leave = desk.hold()
    first = asyncio.create_task(ask(app_of(desk, charged), {"amount": 5}))
    await entered.wait()
    assert (await ask(app_of(Desk(), charged), {"amount": 5})).status == 409
    leave.set()
    await first
    assert await count(charged) == 1


async def test_who_comes_while_the_first_is_under_way_gets_its_reply(charged: Database) -> None:
    desk = Desk()
    entered, leave = desk.hold()
    app = app_of(desk, charged)
    first = asyncio.create_task(ask(app, {"amount": 5}))
    await entered.wait()
    same = [asyncio.create_task(ask(app, {"amount": 5})) for _ in range(20)]
    other = asyncio.create_task(ask(app, {"amount": 6}))
    await asyncio.sleep(0)
    leave.set()
    assert not (await first).replayed
    replies = await asyncio.gather(*same)
    assert [(reply.status, reply.replayed, reply.body) for reply in replies] == [(201, True, (await first).body)] * 20
    assert (await other).json["type"] == "urn:problem:idempotency-key-reused"
    assert await count(charged) == desk.calls == 1


async def test_when_the_first_fails_the_next_that_waits_has_its_effect(charged: Database) -> None:
    desk = Desk()
    entered, leave = asyncio.Event(), asyncio.Event()

    async def refuse() -> None:
        desk.before = None
        entered.set()
        await leave.wait()
        raise Conflict("not today")

    desk.before = refuse
    app = app_of(desk, charged)
    first = asyncio.create_task(ask(app, {"amount": 5}))
    await entered.wait()
    others = [asyncio.create_task(ask(app, {"amount": 5})) for _ in range(20)]
    await asyncio.sleep(0)
    leave.set()
    assert (await first).json["detail"] == "not today"
    replies = await asyncio.gather(*others)
    assert {reply.status for reply in replies} == {201}
    assert sum(not reply.replayed for reply in replies) == 1
    assert (await count(charged), desk.calls) == (1, 2)


async def test_of_a_thousand_at_once_one_has_its_effect_and_all_get_its_reply(
    charged: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over three instances, by clients that come again when they are told to."""
    monkeypatch.setattr("microkit.web.idempotency.PATIENCE", 0.3)
    desk = Desk()
    desk.before = lambda: asyncio.sleep(1.0)  # longer than the others wait
    apps = [app_of(desk, charged) for _ in range(3)]
    told_to_wait = 0

    async def until_answered(app: WebApp) -> Reply:
        nonlocal told_to_wait
        # A slow machine's pool may be too much asked of: then the answer is 503, and to come again is right too.
        while (reply := await ask(app, {"amount": 5})).status in {409, 503}:
            if reply.status == 409:
                told_to_wait += 1
                assert reply.json["type"] == "urn:problem:request-in-flight"
            await asyncio.sleep(float(reply.headers["retry-after"]))
        return reply

    replies = await asyncio.gather(*(until_answered(apps[number % 3]) for number in range(1000)))
    assert told_to_wait > 0
    assert {reply.status for reply in replies} == {201}
    assert len({reply.body for reply in replies}) == 1
    assert sum(not reply.replayed for reply in replies) == 1
    assert await count(charged) == desk.calls == 1


async def test_a_row_that_another_process_wrote_meanwhile_is_replayed(charged: Database) -> None:
    """The window between looking for the row and writing it, which PostgreSQL's snapshot leaves open."""
    desk = Desk()
    app = app_of(desk, charged)
    first = await ask(app, {"amount": 5}, "other-key")

    async def meanwhile() -> None:
        desk.before = None
        async with charged.engine.connect() as other:
            await other.execute(update(idempotency).values(key="key-1"))
            await other.commit()

    if charged.dialect == "sqlite":
        pytest.skip("SQLite has one writer, so nothing is written meanwhile")
    desk.before = meanwhile
    raced = await ask(app, {"amount": 5}, "key-1")
    assert raced.body == first.body
    assert raced.replayed
    assert await count(charged) == 1
