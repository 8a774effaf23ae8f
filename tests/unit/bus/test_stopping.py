"""A consumer that stops: what is under way ends, what is not goes back."""

from __future__ import annotations

import asyncio

import pytest

from microkit.bus import Delivery, MemoryBus
from microkit.testing.bus_suite import numbered, until
from tests.unit.bus.consuming import TOPIC, Recorder, Run, lanes

pytestmark = pytest.mark.anyio


async def test_stopping_lets_running_handlers_finish_and_gives_the_rest_back(bus: MemoryBus, run: Run) -> None:
    handler = Recorder(seconds=0.05)
    first = await run(handler, concurrency=2)
    await bus.publish(numbered(TOPIC, 40, keys=4))
    await until(lambda: handler.at_once == 2, lambda: "nothing runs")
    await first.stop(5)
    done = list(handler.done)
    assert handler.at_once == 0
    assert sorted(handler.tried) == sorted(done)
    assert len(done) < 40
    handler.seconds = 0
    await run(handler)
    await handler.has_done(40)
    assert sorted(handler.done) == list(range(40))  # what was done before the stop was acknowledged
    assert lanes(handler.done, 4) == lanes(list(range(40)), 4)


async def test_a_handler_that_outlasts_the_drain_is_cancelled_and_its_message_comes_again(
    bus: MemoryBus, run: Run
) -> None:
    ended: list[str] = []

    async def stubborn(delivery: Delivery) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    first = await run(stubborn)
    await bus.publish(numbered(TOPIC, 1))
    await until(lambda: first.progress()[0].in_flight == 1, lambda: "nothing runs")
    await asyncio.sleep(0.01)
    await first.stop(0.05)
    assert ended == ["cancelled"]
    handler = Recorder()
    await run(handler)
    await handler.has_done(1)


async def test_stopping_does_not_wait_for_a_key_that_is_to_be_retried_later(bus: MemoryBus, run: Run) -> None:
    handler = Recorder(lambda _: ValueError("no"))
    runtime = await run(handler, backoff=3600.0, longest_backoff=3600.0)
    await bus.publish(numbered(TOPIC, 1))
    await until(lambda: runtime.progress()[0].retrying == 1, lambda: "it is not retried")
    async with asyncio.timeout(30):
        await runtime.stop(60)
    again = Recorder()
    await run(again)
    await again.has_done(1)
