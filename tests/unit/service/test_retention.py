"""A running service forgets what it need not keep: published events, the inbox, replies, sagas that ended."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from pydantic import BaseModel

from microkit import ANYONE, Service
from microkit.db import Database, Transaction
from microkit.outbox.tables import PUBLISHED, inbox, outbox
from microkit.saga import Saga, retriable
from microkit.saga.retention import prune
from microkit.saga.tables import Direction, Status, saga, saga_step
from microkit.web.tables import idempotency

pytestmark = pytest.mark.anyio

NOW = datetime.now(UTC)
OLD, YOUNG = NOW - timedelta(days=400), NOW - timedelta(minutes=1)
"""Beyond every retention, and within every one."""


class Nothing(BaseModel): ...


async def do() -> None: ...


tidy = Saga("tidy", Nothing, [retriable(do, timeout=5)])


def keeping() -> Service:
    service = Service("keeping")
    service.saga(tidy)

    @service.post("/", allow=ANYONE)
    async def write(tx: Transaction) -> int:
        return 1

    return service


def saga_row(status: Status, at: datetime) -> dict[str, Any]:
    alive = status in {Status.RUNNING, Status.COMPENSATING}
    return {
        "id": uuid4(),
        "name": "elsewhere",
        "version": 1,
        "fingerprint": "of another time",
        "state": {},
        "status": status,
        "direction": Direction.ACTION,
        "step": "do" if alive else None,
        "attempts": 1,
        "seq": 1,
        "epoch": 1,
        "next_at": NOW + timedelta(days=1) if alive else None,
        "context": {},
        "created_at": at,
        "updated_at": at,
    }


def step_row(saga_id: UUID) -> dict[str, Any]:
    row = {"saga_id": saga_id, "seq": 1, "step": "do", "direction": Direction.ACTION, "attempt": 1, "status": "done"}
    return {**row, "started_at": OLD, "ended_at": OLD}


async def fill(tx: Transaction, at: datetime, word: str) -> None:
    """A row of each kind that is done with, as it stood ``at`` that time."""
    event = {"id": str(uuid4()), "aggregatetype": "a.b", "aggregateid": word, "type": "a.b.C", "payload": b"{}"}
    settled = {"headers": {}, "shard": 0, "state": PUBLISHED, "created_at": at, "done_at": at}
    await tx.execute(sa.insert(outbox), {**event, **settled})
    await tx.execute(sa.insert(inbox), {"consumer": word, "source": "s", "id": "1", "digest": b"", "received_at": at})
    reply = {"scope": word, "key": "1", "fingerprint": b"", "status": 200, "headers": "{}", "body": b""}
    await tx.execute(sa.insert(idempotency), {**reply, "expires_at": at + timedelta(days=1)})
    await tx.execute(sa.insert(saga), saga_row(Status.COMPLETED, at))


async def left(database: Database) -> list[int]:
    async with database.transaction(read_only=True) as tx:
        return [
            await tx.scalar(sa.select(sa.func.count()).select_from(table)) or 0
            for table in (outbox, inbox, idempotency, saga)
        ]


async def test_a_running_service_deletes_what_is_old_and_keeps_what_is_young(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("microkit.outbox.relay", "microkit.saga.retention", "microkit.web.app"):
        monkeypatch.setattr(f"{module}.PRUNE_EVERY", 0.05)
    settings = {"database_url": database_url, "port": 0, "migrate_on_start": True}
    async with keeping().instance(settings) as instance:
        async with instance.database.transaction() as tx:
            await fill(tx, OLD, "old")
            await fill(tx, YOUNG, "young")
        async with asyncio.timeout(60):
            while await left(instance.database) != [1, 1, 1, 1]:
                await asyncio.sleep(0.02)

        async with instance.database.transaction(read_only=True) as tx:
            assert list(await tx.scalars(sa.select(inbox.c.consumer))) == ["young"]
            assert list(await tx.scalars(sa.select(outbox.c.aggregateid))) == ["young"]
            assert list(await tx.scalars(sa.select(idempotency.c.scope))) == ["young"]
            assert (await tx.scalars(sa.select(saga.c.updated_at)))[0] > OLD


async def test_a_service_keeps_its_sagas_as_long_as_its_setting_says(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("microkit.saga.retention.PRUNE_EVERY", 0.05)
    settings = {"database_url": database_url, "port": 0, "migrate_on_start": True}
    async with keeping().instance({**settings, "saga_retention": "30s"}) as instance:
        async with instance.database.transaction() as tx:
            await tx.execute(sa.insert(saga), saga_row(Status.COMPENSATED, YOUNG))
        async with asyncio.timeout(60):
            while (await left(instance.database))[3]:
                await asyncio.sleep(0.02)


async def test_old_sagas_go_in_portions_with_their_history_unless_they_are_open(
    database_url: str,
) -> None:
    settings = {"database_url": database_url, "port": 0, "migrate_on_start": True, "saga_retention": "10000d"}
    async with keeping().instance(settings) as instance:
        ended = [saga_row(status, OLD) for status in (Status.COMPLETED, Status.COMPENSATED, Status.COMPLETED)]
        kept = [saga_row(status, OLD) for status in (Status.RUNNING, Status.COMPENSATING, Status.STUCK)]
        lately = {**saga_row(Status.COMPLETED, OLD), "updated_at": YOUNG}
        async with instance.database.transaction() as tx:
            for row in (*ended, *kept, lately):
                await tx.execute(sa.insert(saga), row)
                await tx.execute(sa.insert(saga_step), step_row(row["id"]))

        pruned = [await instance.database.run(lambda tx: prune(tx, keep=3600.0, most=2)) for _ in range(3)]

        assert pruned == [2, 1, 0]
        async with instance.database.transaction(read_only=True) as tx:
            for table in (saga.c.id, saga_step.c.saga_id):
                assert set(await tx.scalars(sa.select(table))) == {row["id"] for row in (*kept, lately)}
