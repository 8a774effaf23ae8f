"""What a running service does with events of other versions than its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import sqlalchemy as sa

from microkit import Event, Service, System, Transaction, upcast
from microkit.message import Message
from microkit.outbox.tables import DEAD, outbox
from microkit.testing.system import SystemUnderTest, run_system

pytestmark = pytest.mark.anyio


class Ordered(Event, topic="shop.orders", key="order", version=3):
    order: str
    pieces: int
    note: str = ""

    @upcast(from_version=2)
    @staticmethod
    def counted(payload: dict[str, Any]) -> dict[str, Any]:
        return {"order": payload["order"], "pieces": int(payload["count"])}


class Packed(Event, topic="depot.packed", key="order"):
    order: str
    pieces: int


depot = Service("depot")


@depot.on(Ordered)
async def pack(event: Ordered, tx: Transaction) -> None:
    tx.publish(Packed(order=event.order, pieces=event.pieces))


@pytest.fixture
async def running(anyio_backend: str, tmp_path: Path) -> AsyncIterator[SystemUnderTest]:
    async with run_system(System("shop", [depot]), tmp_path) as started:
        yield started


def ordered(message_id: str, version: int, value: str) -> Message:
    headers = {
        "ce_id": message_id,
        "ce_type": Ordered.event_type,
        "ce_source": "till",
        "ce_schemaversion": str(version),
    }
    return Message("shop.orders", "1", value.encode(), headers)


async def letters(running: SystemUnderTest, wanted: int) -> list[tuple[bytes, str, str]]:
    """The dead letters of the depot, which a bus that keeps nothing leaves in its outbox: value, reason, error."""
    instance = running.running.instances["depot"]
    chosen = sa.select(outbox.c.payload, outbox.c.headers).where(outbox.c.state == DEAD).order_by(outbox.c.seq)

    async def read(tx: Transaction) -> list[tuple[bytes, str, str]]:
        rows = (await tx.execute(chosen)).all()
        return [(bytes(value), headers["mk_dlq_reason"], headers["mk_dlq_error"]) for value, headers in rows]

    async with asyncio.timeout(60):
        while len(found := await instance.database.run(read, read_only=True)) < wanted:
            await asyncio.sleep(0.02)
    return found


async def test_versions_that_cannot_be_read_are_dead_letters_and_the_next_event_is_handled(
    running: SystemUnderTest,
) -> None:
    old, new = ordered("a", 1, '{"order":"1"}'), ordered("b", 4, '{"order":"1","pallets":2}')
    broken = ordered("c", 2, '{"order":"1","count":"many"}')
    async with running.listening(Packed) as packed:
        await running.running.bus.publish([old, new, broken, ordered("d", 3, '{"order":"1","pieces":5}')])

        assert (await packed.next(within=30)).pieces == 5
    found = await letters(running, 3)
    assert [(value, reason) for value, reason, _ in found] == [
        (old.value, "older-version"),
        (new.value, "newer-version"),
        (broken.value, "upcast-failed"),
    ]
    assert found[1][2] == "shop.orders.Ordered has version 4; this service knows 3"


async def test_an_older_event_has_its_effect_once_and_a_newer_field_is_no_trouble(running: SystemUnderTest) -> None:
    old = ordered("a", 2, '{"order":"1","count":"7"}')
    async with running.listening(Packed) as packed:
        await running.running.bus.publish([old, old, ordered("b", 3, '{"order":"1","pieces":8,"gift":true}'), old])

        assert [(await packed.next(within=30)).pieces for _ in range(2)] == [7, 8]
        with pytest.raises(TimeoutError):
            await packed.next(within=0.2)


async def test_an_id_that_comes_again_with_other_bytes_is_told_though_both_are_upcast_alike(
    running: SystemUnderTest,
) -> None:
    twice = [ordered("a", 2, '{"order":"1","count":"7"}'), ordered("a", 2, '{"order":"1","count":7}')]
    await running.running.bus.publish(twice)
    ((value, reason, _),) = await letters(running, 1)
    assert (value, reason) == (twice[1].value, "id-reused")


async def test_a_service_with_events_serves_their_document(running: SystemUnderTest) -> None:
    url = running.running.instances["depot"].url
    async with aiohttp.ClientSession() as session, session.get(f"{url}/asyncapi.json") as answer:
        found = await answer.json()

    assert answer.status == 200
    assert "servers" not in found
    assert found["operations"]["depot.pack.receive"]["action"] == "receive"
    assert found["components"]["messages"]["shop.orders.Ordered"]["x-microkit"]["upcasts"] == [2]


async def test_a_service_without_events_serves_none(anyio_backend: str, tmp_path: Path) -> None:
    async with run_system(System("quiet", [Service("silent")]), tmp_path) as started:
        url = started.running.instances["silent"].url
        async with aiohttp.ClientSession() as session, session.get(f"{url}/asyncapi.json") as answer:
            assert answer.status == 404
