"""What an operator asks of the outbox, on both databases, beside relays that run."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from microkit.message import Message
from microkit.outbox import admin
from microkit.outbox.tables import PARKED, PUBLISHED, outbox
from microkit.testing.bus_suite import until
from microkit.testing.faulty_bus import FaultyBus

pytestmark = pytest.mark.anyio

LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)


def numbers(messages: Sequence[Message]) -> list[int]:
    return [json.loads(message.value)["number"] for message in messages]


async def states_become(box: Any, wanted: list[int]) -> None:
    async with asyncio.timeout(60):
        while await box.states() != wanted:
            await asyncio.sleep(0.02)


async def test_an_empty_outbox_has_nothing_to_say(box: Any) -> None:
    found = await admin.outbox_status(box.database)
    assert found == admin.OutboxStatus((), (), ())
    assert found.total("pending") == 0
    assert found.oldest is None


async def test_status_counts_rows_by_topic_and_state_and_lists_the_parked_ones(box: Any, broker: FaultyBus) -> None:
    broker.refuse = lambda message: ValueError("too large") if json.loads(message.value)["number"] == 3 else None
    relay = await box.relay(broker, attempts=1)
    await box.publish_numbers(range(5), keys=5)
    await states_become(box, [PUBLISHED] * 3 + [PARKED, PUBLISHED])
    running = await admin.outbox_status(box.database)
    assert [each.shards for each in running.relays] == [16]
    await relay.stop(5)
    await box.publish_numbers(range(5, 7))
    found = await admin.outbox_status(box.database)
    (topic,) = found.topics
    assert (topic.topic, topic.pending, topic.published, topic.parked) == ("billing.bills", 2, 4, 1)
    assert found.oldest is not None
    assert found.oldest >= 0
    (parked,) = found.parked
    assert (parked.topic, parked.key, parked.attempts) == ("billing.bills", "3", 1)
    assert "too large" in parked.error
    assert parked.parked_at >= parked.created_at
    assert found.relays == ()


async def test_what_was_published_is_published_again_in_its_order_with_its_ids(box: Any, broker: FaultyBus) -> None:
    await box.relay(broker)
    await box.publish_numbers(range(20), keys=4)
    await states_become(box, [PUBLISHED] * 20)
    first = list(broker.published)
    assert await admin.replay(box.database, since=LONG_AGO, dry_run=True) == 20
    assert await admin.replay(box.database, since=LONG_AGO) == 20
    await until(lambda: len(broker.published) == 40, lambda: f"{len(broker.published)} of 40")
    assert [message.id for message in broker.published[20:]] == [message.id for message in first]
    await states_become(box, [PUBLISHED] * 20)


async def test_a_replay_takes_more_than_one_step_and_each_row_once(
    box: Any, broker: FaultyBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin, "_STEP", 7)
    relay = await box.relay(broker)
    await box.publish_numbers(range(30), keys=3)
    await states_become(box, [PUBLISHED] * 30)
    await relay.stop(5)
    assert await admin.replay(box.database, since=LONG_AGO) == 30
    assert await admin.replay(box.database, since=LONG_AGO) == 0
    await box.relay(broker)
    await until(lambda: len(broker.published) == 60, lambda: f"{len(broker.published)} of 60")
    assert numbers(broker.published[30:]) == list(range(30))


async def test_a_replay_chooses_by_time_topic_and_key(box: Any, broker: FaultyBus) -> None:
    await box.relay(broker)
    await box.publish_numbers(range(10), keys=5)
    await states_become(box, [PUBLISHED] * 10)
    old = datetime.now(UTC) - timedelta(days=1)
    await box.change(sa.update(outbox).where(outbox.c.aggregateid == "1").values(created_at=old))
    recent = old + timedelta(hours=1)
    assert await admin.replay(box.database, since=recent, dry_run=True) == 8
    assert await admin.replay(box.database, since=recent, key="1", dry_run=True) == 0
    assert await admin.replay(box.database, since=LONG_AGO, key="1", dry_run=True) == 2
    assert await admin.replay(box.database, since=LONG_AGO, topic="other", dry_run=True) == 0
    assert await admin.replay(box.database, since=LONG_AGO, topic="billing.bills", key="2") == 2
    await until(lambda: len(broker.published) == 12, lambda: f"{len(broker.published)} of 12")
    assert numbers(broker.published[10:]) == [2, 7]
    with pytest.raises(ValueError, match="zone"):
        await admin.replay(box.database, since=datetime(2026, 1, 1))  # noqa: DTZ001  that is the point


async def test_a_parked_row_is_tried_again_when_it_is_told_to(box: Any, broker: FaultyBus) -> None:
    broker.refuse = lambda _message: ValueError("no")
    await box.relay(broker, attempts=1)
    await box.publish_numbers(range(3), keys=3)
    await states_become(box, [PARKED] * 3)
    broker.refuse = lambda _message: None
    ids = [row.id for row in await box.rows()]
    assert await admin.unpark(box.database, ids=ids[1:2], dry_run=True) == 1
    assert await admin.unpark(box.database, ids=ids[1:2]) == 1
    await states_become(box, [PARKED, PUBLISHED, PARKED])
    assert await admin.unpark(box.database, topic="other") == 0
    assert await admin.unpark(box.database) == 2
    await states_become(box, [PUBLISHED] * 3)
    assert sorted(numbers(broker.published)) == [0, 1, 2]
    assert all(row.error is None and row.attempts == 0 for row in await box.rows())
