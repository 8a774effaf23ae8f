"""Poison rows, a bus that is away, a database that is away."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from typing import Any

import pytest
import sqlalchemy as sa

from microkit.message import Message
from microkit.outbox import Relay, RelayOptions
from microkit.outbox.tables import FAILING, PARKED, PENDING, PUBLISHED, outbox
from microkit.telemetry import Telemetry
from microkit.testing.bus_suite import until
from microkit.testing.faulty_bus import FaultyBus
from tests.contract.outbox.arrivals import numbers, published

pytestmark = pytest.mark.anyio


async def states_become(box: Any, wanted: list[int]) -> None:
    async with asyncio.timeout(60):
        while (found := await box.states()) != wanted:
            await asyncio.sleep(0.02)
    assert found == wanted


def refusing(*refused: int) -> Any:
    return lambda message: ValueError("too large") if json.loads(message.value)["number"] in refused else None


async def test_a_poison_row_is_parked_while_others_flow(box: Any, broker: FaultyBus) -> None:
    broker.refuse = refusing(3)
    relay = await box.relay(broker, attempts=3)
    await box.publish_numbers(range(20), keys=10)
    await published(broker, 19)
    await states_become(box, [PUBLISHED] * 3 + [PARKED] + [PUBLISHED] * 16)
    assert sorted(numbers(broker.published)) == [number for number in range(20) if number != 3]
    row = (await box.rows())[3]
    assert row.attempts == 3
    assert "too large" in row.error
    relay._held_at = float("-inf")
    await until(lambda: relay.health().backlog.parked == 1, lambda: "it is not counted")


async def test_later_events_of_a_key_wait_while_one_is_refused(box: Any, broker: FaultyBus) -> None:
    broker.refuse = refusing(3)
    await box.relay(broker, attempts=1000)
    await box.publish_numbers(range(20), keys=10)
    await published(broker, 18)
    await box.publish_numbers(range(20, 30), keys=10)
    await published(broker, 27)
    assert sorted({number % 10 for number in numbers(broker.published)}) == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert [row.state for row in await box.rows() if row.aggregateid == "3"] == [FAILING, PENDING, PENDING]
    broker.refuse = refusing()
    await published(broker, 30)
    assert [number for number in numbers(broker.published) if number % 10 == 3] == [3, 13, 23]
    await states_become(box, [PUBLISHED] * 30)


async def test_order_holds_when_another_relay_takes_over_a_refused_key(box: Any, broker: FaultyBus) -> None:
    broker.refuse = refusing(0)
    first = await box.relay(broker, attempts=1000, backoff=3600.0, longest_backoff=3600.0)
    await box.publish_numbers(range(4), keys=2)
    await published(broker, 2)
    await states_become(box, [FAILING, PUBLISHED, PENDING, PUBLISHED])  # and not only sent
    await first.stop(0.1)
    broker.refuse = refusing()
    await box.relay(broker, database=await box.reopen())
    await box.publish_numbers(range(4, 8), keys=2)
    await published(broker, 4)
    await asyncio.sleep(0.2)
    assert numbers(broker.published) == [1, 3, 5, 7]
    await box.change(sa.update(outbox).where(outbox.c.state == FAILING).values(next_at=outbox.c.created_at))
    await published(broker, 8)
    assert numbers(broker.published)[4:] == [0, 2, 4, 6]


async def test_an_error_that_no_text_column_takes_is_kept_all_the_same(box: Any, broker: FaultyBus) -> None:
    class OddError(Exception):
        def __repr__(self) -> str:
            return "odd \0 \udcff " + "x" * 5000

    broker.refuse = lambda _message: OddError()
    await box.relay(broker, attempts=1)
    await box.publish_numbers(range(1))
    await states_become(box, [PARKED])
    assert (await box.rows())[0].error.startswith("odd \\0 \\udcff x")


async def test_a_bus_that_is_away_costs_no_attempts_and_is_reported_once(
    box: Any, broker: FaultyBus, caplog: pytest.LogCaptureFixture
) -> None:
    broker.away = True
    await box.publish_numbers(range(30), keys=3)
    with caplog.at_level(logging.INFO):
        relay = await box.relay(broker, attempts=2)
        await until(lambda: broker.attempts >= 5, lambda: f"{broker.attempts} attempts")
        assert not relay.health().ok
        assert "away" in relay.health().trouble
        broker.away = False
        await published(broker, 30)
        await states_become(box, [PUBLISHED] * 30)
        await until(lambda: relay.health().ok, lambda: f"{relay.health()}")
    assert numbers(broker.published) == list(range(30))
    assert all(row.attempts == 0 for row in await box.rows())
    told = [record.getMessage() for record in caplog.records if record.getMessage().startswith("outbox:")]
    assert len(told) == 2
    assert "cannot publish" in told[0]
    assert "publishes again" in told[1]


async def test_events_whose_connection_failed_in_mid_batch_cost_no_attempts(box: Any, broker: FaultyBus) -> None:
    failures = 3

    def refuse(message: Message) -> Exception | None:
        nonlocal failures
        if json.loads(message.value)["number"] == 5 and failures:
            failures -= 1
            return ConnectionResetError("reset")
        return None

    broker.refuse = refuse
    await box.relay(broker, attempts=2)
    await box.publish_numbers(range(10), keys=5)
    await published(broker, 10)
    await states_become(box, [PUBLISHED] * 10)
    found = numbers(broker.published)
    assert sorted(found) == list(range(10))
    assert all(row.attempts == 0 for row in await box.rows())


async def test_stopping_flushes_what_is_committed(box: Any, broker: FaultyBus) -> None:
    relay = await box.relay(broker, batch=10, poll=3600.0)
    await asyncio.sleep(0.1)
    await box.publish_numbers(range(100))
    await relay.stop(10)
    assert numbers(broker.published) == list(range(100))
    await states_become(box, [PUBLISHED] * 100)


async def test_stopping_flushes_what_was_committed_since_the_relay_last_looked(box: Any, broker: FaultyBus) -> None:
    relay = await box.relay(broker, poll=3600.0)
    claim = relay._claim
    stopping: list[asyncio.Task[None]] = []

    async def looked_too_early(under_way: Sequence[int] = ()) -> Any:
        rows = await claim(under_way)
        if not rows and not stopping:
            await box.publish_numbers(range(10))
            stopping.append(asyncio.create_task(relay.stop(10)))
            await asyncio.sleep(0)
        return rows

    relay._claim = looked_too_early
    await box.publish_numbers(range(10, 20))
    async with asyncio.timeout(60):
        while not stopping or not stopping[0].done():
            await asyncio.sleep(0.01)
    assert sorted(numbers(broker.published)) == list(range(20))


async def test_stopping_does_not_outlast_its_time_when_the_bus_is_away(box: Any, broker: FaultyBus) -> None:
    broker.away = True
    await box.publish_numbers(range(10))
    relay = await box.relay(broker)
    async with asyncio.timeout(60):
        await relay.stop(0.2)
    assert await box.states() == [PENDING] * 10


async def test_published_rows_are_pruned_after_a_while_and_no_others(box: Any, broker: FaultyBus) -> None:
    broker.refuse = refusing(0, 1)
    await box.publish_numbers(range(30), keys=30)
    relay = await box.relay(broker, attempts=1, keep=0.0)
    await states_become(box, [PARKED] * 2 + [PUBLISHED] * 28)
    relay._pruned_at = float("-inf")
    await box.publish_numbers(range(30, 31))
    async with asyncio.timeout(60):
        while len(await box.rows()) > 3:
            relay._pruned_at = float("-inf")
            await asyncio.sleep(0.05)
    assert {PARKED} <= set(await box.states())
    assert (await box.states()).count(PARKED) == 2


async def test_the_backlog_is_in_the_metrics(box: Any, broker: FaultyBus) -> None:
    telemetry = Telemetry("billing")
    broker.away = True
    await box.publish_numbers(range(7))
    await asyncio.sleep(0.05)
    relay = Relay(box.database, broker, telemetry, source="billing", options=RelayOptions(lease=0.6, poll=0.05))
    box.relays.append(relay)
    await relay.start()
    read = telemetry.registry.get_sample_value
    await until(lambda: read("microkit_outbox_waiting") == 7, lambda: "not counted")
    assert (read("microkit_outbox_oldest_age_seconds") or 0) > 0
    assert read("microkit_outbox_shards_held") == 16
    await until(lambda: (read("microkit_outbox_failures_total") or 0) > 0, lambda: "no failure is counted")
    broker.away = False
    await published(broker, 7)
    await until(lambda: read("microkit_outbox_waiting") == 0, lambda: "still counted")
    sent = read("messaging_client_sent_messages_total", {"messaging_destination_name": "billing.bills"})
    assert sent == 7


class TestDatabaseAway:
    @pytest.fixture
    def database_url(self, postgres_url: str) -> str:
        """Its server can end connections; SQLite has none."""
        return postgres_url

    async def test_the_relay_survives_that_all_its_connections_are_ended(
        self, box: Any, broker: FaultyBus, postgres_cluster: Any, postgres_url: str
    ) -> None:
        relay = await box.relay(broker)
        for start in range(0, 50, 10):
            await box.publish_numbers(range(start, start + 10), keys=5)
            postgres_cluster.psql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
            )
            await asyncio.sleep(0.05)
        await published(broker, 50)
        assert sorted(set(numbers(broker.published))) == list(range(50))
        await states_become(box, [PUBLISHED] * 50)
        await until(lambda: relay.health().ok, lambda: f"{relay.health()}")
