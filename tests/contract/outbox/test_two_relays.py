"""Several relays on one table: shared shards, leases that run out, and what a relay that slept may still do."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Sequence
from typing import Any

import pytest
import sqlalchemy as sa

from microkit.bus import PublishFailed
from microkit.errors import ConfigurationError
from microkit.message import Message
from microkit.outbox import Relay, RelayOptions
from microkit.outbox.lease import ShardLeases
from microkit.outbox.owner import is_gone, new_owner
from microkit.outbox.tables import PUBLISHED, SHARDS, relay_presence, shard_lease
from microkit.telemetry import Telemetry
from microkit.testing.bus_suite import until
from microkit.testing.faulty_bus import FaultyBus
from tests.contract.outbox.arrivals import first_comings, numbers, published

pytestmark = pytest.mark.anyio

EXPIRE = (sa.update(shard_lease).values(lease_until=sa.null()), sa.delete(relay_presence))


def shards(relay: Relay) -> int:
    return relay.health().shards


async def test_two_relays_share_the_shards_and_publish_nothing_twice(box: Any, broker: FaultyBus) -> None:
    one = await box.relay(broker, lease=2.0, batch=20)
    await until(lambda: shards(one) == SHARDS, lambda: f"{shards(one)} shards")
    two = await box.relay(broker, lease=2.0, batch=20, database=await box.reopen())
    await until(
        lambda: (shards(one), shards(two)) == (SHARDS // 2, SHARDS // 2), lambda: f"{shards(one)} and {shards(two)}"
    )
    for start in range(0, 1000, 100):
        await box.publish_numbers(range(start, start + 100), keys=40)
        await asyncio.sleep(0.01)
    await published(broker, 1000)
    found = numbers(broker.published)
    assert sorted(found) == list(range(1000))
    for key in range(40):
        lane = [number for number in found if number % 40 == key]
        assert lane == sorted(lane)


async def test_a_relay_that_stops_hands_over_at_once(box: Any, broker: FaultyBus) -> None:
    one = await box.relay(broker, lease=3600.0)
    await until(lambda: shards(one) == SHARDS, lambda: "no leases")
    await one.stop(5)
    two = await box.relay(broker, lease=3600.0, database=await box.reopen())
    await box.publish_numbers(range(5))
    await published(broker, 5)
    assert shards(two) == SHARDS


async def test_a_relay_waits_for_the_lease_of_one_that_lives(box: Any, broker: FaultyBus) -> None:
    broker.open.clear()
    await box.relay(broker, lease=3600.0)
    await box.publish_numbers(range(5))
    await until(lambda: broker.attempts == 1, lambda: "nothing is published")
    other = FaultyBus()
    await box.relay(other, lease=3600.0, database=await box.reopen())
    await asyncio.sleep(0.3)
    assert other.attempts == 0
    broker.open.set()
    await published(broker, 5)


async def test_the_lease_of_a_process_that_is_known_to_have_ended_is_free_at_once(box: Any, broker: FaultyBus) -> None:
    place, pid, started, _ = new_owner().split(":")
    ended = await asyncio.create_subprocess_exec("true")
    await ended.wait()
    assert not is_gone(":".join([place, pid, started, "another"]))
    assert is_gone(":".join([place, str(ended.pid), started, "x"]))
    assert is_gone(":".join([place, pid, "1", "x"]))  # the number was given to another process since
    assert not is_gone(":".join(["another machine", str(ended.pid), started, "x"]))
    assert not is_gone("whatever")
    assert not is_gone("")

    leases = ShardLeases(box.database, 3600.0)
    leases.owner = ":".join([place, str(ended.pid), started, "x"])
    await leases.seed()
    await leases.hold()
    await box.relay(broker, lease=3600.0)
    await box.publish_numbers(range(5))
    await published(broker, 5)


async def test_a_zombie_counts_as_ended() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    place, _, _, _ = new_owner().split(":")
    try:
        async with asyncio.timeout(60):
            while not is_gone(f"{place}:{pid}:12345:x"):
                await asyncio.sleep(0.01)
    finally:
        os.waitpid(pid, 0)  # noqa: ASYNC222  it has ended already


class Sleeper(FaultyBus):
    """The bus of a relay that is stopped (SIGSTOP) after it has claimed a batch, for longer than its lease.

    Meanwhile ``others`` do what they do; then it wakes up, publishes what it had, and ``answer`` is what it is told.
    """

    def __init__(self, broker: FaultyBus, others: Any, answer: Exception | None) -> None:
        super().__init__()
        self.broker = broker
        self.others = others
        self.answer = answer

    async def publish(self, messages: Sequence[Message]) -> None:
        self.attempts += 1
        if self.attempts == 1:
            await self.others()
        await self.broker.publish(messages)
        if self.attempts == 1 and self.answer is not None:
            raise self.answer


@pytest.mark.parametrize("answer", [None, PublishFailed({0: ValueError("no")}), ConnectionError("lost")])
async def test_a_relay_that_slept_through_its_lease_changes_nothing_when_it_wakes(
    box: Any, broker: FaultyBus, answer: Exception | None, caplog: pytest.LogCaptureFixture
) -> None:
    async def others() -> None:
        await box.change(*EXPIRE)
        await box.relay(broker, database=await box.reopen(), lease=3600.0)
        await box.publish_numbers(range(10, 20))
        await published(broker, 20)
        async with asyncio.timeout(60):
            while await box.states() != [PUBLISHED] * 20:
                await asyncio.sleep(0.02)

    before = time.monotonic()
    sleeper = Sleeper(broker, others, answer)
    await box.publish_numbers(range(10))
    with caplog.at_level(logging.WARNING):
        slept = await box.relay(sleeper, lease=3600.0)
        await until(lambda: len(broker.published) >= 30, lambda: f"{len(broker.published)} published")
        slept._held_at = before - 3600.0  # its next heartbeat
        slept._signal.alone = False  # as it would be, had the lease run out by this clock, too
        await box.publish_numbers(range(20, 30))
        await published(broker, 30)
    assert first_comings(numbers(broker.published)) == list(range(30))
    # Each half of the batch that was under way came twice at most, nothing more.
    assert 40 <= len(broker.published) <= 50
    async with asyncio.timeout(60):
        while await box.states() != [PUBLISHED] * 30:
            await asyncio.sleep(0.02)
    assert all(row.attempts == 0 and row.error is None for row in await box.rows())
    await until(lambda: shards(slept) + shards(box.relays[1]) == SHARDS, lambda: "both believe they hold a shard")


async def test_nothing_is_published_on_a_lease_that_may_have_run_out(box: Any, broker: FaultyBus) -> None:
    """The clock is looked at between the claim and the publishing."""
    relay = await box.relay(broker, start=False, lease=3600.0)
    claim = relay._claim

    async def slow() -> Any:
        rows = await claim()
        if rows and relay._leases.left > 0:
            relay._leases.valid_until = time.monotonic() - 1  # an hour passes
        return rows

    relay._claim = slow
    await box.publish_numbers(range(5))
    await relay.start()
    await until(lambda: relay.health().trouble is not None, lambda: "it did not notice")
    assert broker.attempts == 0
    relay._claim = claim
    await published(broker, 5)


async def test_publishing_that_outlasts_the_lease_is_given_up_before(box: Any, broker: FaultyBus) -> None:
    broker.open.clear()
    relay = await box.relay(broker, lease=0.6)
    await box.publish_numbers(range(5))
    await until(lambda: broker.attempts >= 2, lambda: "it still hangs")
    assert any(reason in (relay.health().trouble or "") for reason in ("Timeout", "the lease ran out"))
    broker.open.set()
    await published(broker, 5)
    await until(lambda: relay.health().trouble is None, lambda: "it did not recover")


async def test_a_lost_grant_is_taken_again_under_a_new_epoch(box: Any) -> None:
    """The COMMIT of a heartbeat was never confirmed: what it granted is one's own, and under no known epoch."""
    leases = ShardLeases(box.database, 3600.0)
    await leases.seed()
    await leases.hold()
    before, leases.epochs = leases.epochs, {}
    await leases.hold()
    assert leases.epochs == {shard: epoch + 1 for shard, epoch in before.items()}


async def test_an_epoch_grows_with_every_owner_and_stays_while_it_is_renewed(box: Any) -> None:
    one, two = ShardLeases(box.database, 3600.0), ShardLeases(box.database, 3600.0)
    await one.seed()
    await one.seed()
    await one.hold()
    first = one.epochs
    assert set(first) == set(range(SHARDS))
    await one.hold()
    assert one.epochs == first
    await two.hold()
    assert two.epochs == {}
    await one.hold(busy=range(SHARDS))
    assert one.epochs == first
    await one.hold()
    await two.hold()
    assert set(one.epochs) | set(two.epochs) == set(range(SHARDS))
    assert not set(one.epochs) & set(two.epochs)
    assert all(two.epochs[shard] == first[shard] + 1 for shard in two.epochs)
    await box.change(*EXPIRE)
    await one.release()
    await two.hold()
    assert set(two.epochs) == set(range(SHARDS))


async def test_a_lease_shorter_than_three_heartbeats_is_refused(box: Any, broker: FaultyBus) -> None:
    with pytest.raises(ConfigurationError, match="lease"):
        Relay(box.database, broker, Telemetry("x"), source="billing", options=RelayOptions(lease=0.1))
