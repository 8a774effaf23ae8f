"""Instances of one service share what they know of failing neighbours, on a real Valkey."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from uuid import uuid4

import pytest

from microkit.resilience.breaker import Breaker, BreakerState
from microkit.resilience.shared import SharedBreakers
from microkit.servers.valkey import ValkeyServer
from microkit.testing.valkey import valkey

pytestmark = pytest.mark.anyio

Replica = Callable[[], Breaker]


@pytest.fixture(scope="module")
def store() -> Iterator[ValkeyServer]:
    with valkey() as server:
        yield server


@pytest.fixture
async def replica(store: ValkeyServer) -> AsyncIterator[Replica]:
    """Makes a process's own breaker, which is shared with the others' of this test."""
    group = uuid4().hex
    async with AsyncExitStack() as stack:
        made: list[SharedBreakers] = []

        def make() -> Breaker:
            breaker = Breaker("billing", failures=3, reset=0.3)
            made.append(SharedBreakers(store.url, group, lambda: [breaker], reset=0.3, interval=0.02))
            stack.push_async_callback(made[-1].stop)
            tasks.append(asyncio.create_task(made[-1].start()))
            return breaker

        tasks: list[asyncio.Task[None]] = []
        yield make


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


def fail(breaker: Breaker, times: int = 3) -> None:
    for _ in range(times):
        breaker.failed(breaker.enter())


async def test_what_one_opens_is_open_for_all_and_one_of_all_probes(replica: Replica) -> None:
    breakers = [replica() for _ in range(3)]
    await until(lambda: all(breaker.led for breaker in breakers))
    fail(breakers[0])
    await until(lambda: all(breaker.state is BreakerState.OPEN for breaker in breakers))
    await until(lambda: any(breaker.state is BreakerState.HALF_OPEN for breaker in breakers))
    await asyncio.sleep(0.2)
    (prober,) = [breaker for breaker in breakers if breaker.admits()]  # one of three
    fail(prober, 1)
    await until(lambda: not any(breaker.admits() for breaker in breakers))
    await until(lambda: any(breaker.admits() for breaker in breakers))
    (prober,) = [breaker for breaker in breakers if breaker.admits()]
    prober.succeeded(prober.enter())
    await until(lambda: all(breaker.closed for breaker in breakers))
    await asyncio.sleep(0.1)
    assert all(breaker.closed for breaker in breakers)


async def test_who_comes_later_knows_it_too(replica: Replica) -> None:
    first = replica()
    await until(lambda: first.led)
    fail(first)
    later = replica()
    await until(lambda: later.state is BreakerState.OPEN)


async def test_without_the_store_each_goes_by_its_own_clock() -> None:
    with valkey() as server:
        breaker = Breaker("billing", failures=3, reset=0.2)
        shared = SharedBreakers(server.url, "payment", lambda: [breaker], reset=60.0, interval=0.02)
        await shared.start()
        try:
            await until(lambda: breaker.led)
            fail(breaker)
            await asyncio.sleep(0.4)
            assert not breaker.admits()  # somebody else decides, in a minute
            server.kill()
            await until(breaker.admits)
            breaker.succeeded(breaker.enter())
            assert breaker.closed
        finally:
            await shared.stop()
