"""Who of several real servers is called: the caller's own zone first, and a newcomer little at first. In counts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import aiohttp
import pytest

from microkit.client import HttpCaller, Policies, Upstream
from microkit.discovery.memory import MemoryRegistry
from microkit.discovery.port import Endpoint
from microkit.telemetry import Telemetry
from tests.contract.client.hosts import Echo, Host

pytestmark = pytest.mark.anyio

CALLS = 300
AT_ONCE = 16


class Town:
    """Servers in two zones, found through a registry, and a client in the zone ``near``."""

    def __init__(self, stack: AsyncExitStack, session: aiohttp.ClientSession) -> None:
        self._stack = stack
        self._registry = MemoryRegistry()
        telemetry = Telemetry("caller")
        policies = Policies("echo", {}, 10.0)
        self._upstream = Upstream(
            "echo", resolver=self._registry, telemetry=telemetry, guard=policies.guard(), zone="near"
        )
        self._echo = Echo(HttpCaller(self._upstream, session=session, telemetry=telemetry))

    async def open(self, name: str, zone: str) -> Host:
        host = Host(name)
        await host.server.start()
        self._stack.push_async_callback(host.server.stop, 0.1)
        await self._registry.register("echo", Endpoint(host.server.url, zone=zone))
        return host

    async def call(self, *hosts: Host) -> list[int]:
        """How many of so many calls, all of which are answered, each of ``hosts`` got."""
        for host in hosts:
            host.requests.clear()
        left = iter(range(CALLS))

        async def customer() -> None:
            for _ in left:
                await self._echo.read("x")

        await asyncio.gather(*(customer() for _ in range(AT_ONCE)))
        return [len(host.requests) for host in hosts]


@pytest.fixture
async def town(session: aiohttp.ClientSession) -> AsyncIterator[Town]:
    async with AsyncExitStack() as stack:
        yield Town(stack, session)


async def test_calls_stay_in_their_zone_and_leave_it_when_it_cannot_carry_them(town: Town) -> None:
    near = [await town.open(name, "near") for name in "abc"]
    far = [await town.open(name, "far") for name in "xyz"]
    counts = await town.call(*near, *far)
    assert sum(counts[:3]) == CALLS
    assert min(counts[:3]) > 0
    assert sum(counts[3:]) == 0

    for host in near[:2]:
        await host.server.stop(0.1)  # as a crash would: nobody tells the registry
    counts = await town.call(*near, *far)
    assert sum(counts) == CALLS
    assert min(counts[3:]) > 0, "one of three cannot carry it alone"


async def test_a_newcomer_gets_little_at_first_and_its_share_when_it_is_warm(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = [await town.open(name, "near") for name in "ab"]
    assert sum(await town.call(*old)) == CALLS
    new = await town.open("c", "near")
    *_, first = await town.call(*old, new)
    assert 0 < first < CALLS / 3 / 2
    monkeypatch.setattr("microkit.client.instance.SLOW_START", 0.001)  # as if half a minute were over
    *_, later = await town.call(*old, new)
    assert later > CALLS / 3 / 2
