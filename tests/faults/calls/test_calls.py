"""Calls to three real instances behind proxies, found through a registry, while one after the other goes wrong.

What the callers see, how much comes to whoever is in trouble, and how soon one that is well again is called again, is
counted; the seconds are only told (``pytest -rP`` shows the table).
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest

from microkit import Service
from microkit.discovery.connect import connect
from microkit.discovery.port import Endpoint, Registrar
from microkit.errors import MicrokitError
from microkit.instance import Instance
from microkit.servers.ports import free_ports
from microkit.telemetry import Telemetry
from microkit.testing.consul import ConsulServer
from tests.faults.calls.proxy import Proxy
from tests.faults.calls.stock import Stock

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]

FULL = os.environ.get("MICROKIT_FAULTS") == "full"
CALLS = 3_000 if FULL else 600
AT_ONCE = 16
STOCK = Path(__file__).with_name("stock.py")

shop = Service("shop")
stock = shop.client(Stock)


@dataclass
class Upstream:
    """One instance as a process, on a port that it keeps."""

    port: int
    process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        environment = {**os.environ, "STOCK_PORT": str(self.port), "STOCK_ACCESS_LOG": "false"}
        self.process = subprocess.Popen([sys.executable, STOCK], stdout=subprocess.PIPE, env=environment, text=True)

    def wait(self) -> None:
        assert self.process is not None
        assert self.process.stdout is not None
        assert self.process.stdout.readline().strip() == self.url

    def kill(self) -> None:
        if self.process is not None:
            with self.process as ending:  # closes its pipe and waits
                ending.kill()
            self.process = None

    async def switch(self, mode: str) -> int:
        """Sets its mode; how often it was asked in the one before."""
        async with aiohttp.ClientSession() as session, session.post(f"{self.url}/mode", json=mode) as response:
            assert response.status == 200
            count: int = await response.json()
            return count


@dataclass
class Seen:
    """What came of a number of calls."""

    calls: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    seconds: float = 0.0

    @property
    def errors(self) -> int:
        return self.calls - self.outcomes["ok"]

    def told(self) -> str:
        return f"{self.calls} calls, {dict(self.outcomes)}, slowest {self.slowest:.2f} s, {self.seconds:.1f} s in all"


@dataclass
class Street:
    """The instances, the proxy before each, and the caller."""

    upstreams: list[Upstream]
    proxies: list[Proxy]
    caller: Instance

    async def call(self, number: int = CALLS, at_once: int = AT_ONCE) -> Seen:
        """So many calls; what came of them."""
        client = self.caller.client(Stock)
        seen = Seen()
        left = iter(range(number))

        async def customer() -> None:
            for item in left:
                began = time.monotonic()
                try:
                    assert await client.read(item) == 2 * item
                    seen.outcomes["ok"] += 1
                except MicrokitError as error:
                    seen.outcomes[type(error).__name__] += 1
                seen.calls += 1
                seen.slowest = max(seen.slowest, time.monotonic() - began)

        began = time.monotonic()
        await asyncio.gather(*(customer() for _ in range(at_once)))
        seen.seconds = time.monotonic() - began
        return seen

    async def counted(self) -> list[int]:
        """How often each live instance was asked since this was last asked."""
        return [await upstream.switch("healthy") for upstream in self.upstreams]

    async def see_it_called_again(self, upstream: Upstream) -> None:
        """Calls until the instance is asked again. Its ejection is over after half a minute, so only the full form
        waits for it."""
        if not FULL:
            return
        began = time.monotonic()
        await upstream.switch("healthy")
        async with asyncio.timeout(120):
            while True:
                seen = await self.call(20, 4)
                assert not seen.errors
                if await upstream.switch("healthy"):
                    break
                await asyncio.sleep(0.05)
        tell(f"called again after {time.monotonic() - began:.1f} s")


@pytest.fixture(scope="module")
def upstreams() -> Iterator[list[Upstream]]:
    found = [Upstream(port) for port in free_ports(3)]
    for upstream in found:
        upstream.start()
    for upstream in found:
        upstream.wait()
    yield found
    for upstream in found:
        upstream.kill()


@pytest.fixture
async def proxies(upstreams: list[Upstream]) -> AsyncIterator[list[Proxy]]:
    for upstream in upstreams:
        if upstream.process is None:
            upstream.start()
            upstream.wait()
        await upstream.switch("healthy")
    async with AsyncExitStack() as owned:
        yield [await owned.enter_async_context(Proxy(upstream.port)) for upstream in upstreams]


@asynccontextmanager
async def calling(
    upstreams: list[Upstream], proxies: list[Proxy], found_by: dict[str, object], *, attempt_timeout: float | None = 1.0
) -> AsyncIterator[Street]:
    clients = {"stock": {"timeout": 4.0, "attempt_timeout": attempt_timeout}}
    async with shop.instance({**found_by, "clients": clients, "port": 0}) as caller:
        street = Street(upstreams, proxies, caller)
        async with asyncio.timeout(60):
            while (await street.call(60)).errors or not all(await street.counted()):
                await asyncio.sleep(0.05)
        yield street


@pytest.fixture
async def street(upstreams: list[Upstream], proxies: list[Proxy]) -> AsyncIterator[Street]:
    async with calling(upstreams, proxies, {"services": {"stock": [proxy.url for proxy in proxies]}}) as found:
        yield found


def tell(sentence: str) -> None:
    sys.stdout.write(f"{sentence}\n")


async def test_one_of_three_is_dead_and_nobody_notices(street: Street) -> None:
    dead = street.upstreams[0]
    dead.kill()
    await street.proxies[0].refuse()
    seen = await street.call()
    tell(f"one dead: {seen.told()}")
    assert seen.errors == 0

    dead.start()
    dead.wait()
    await street.proxies[0].open()
    await street.see_it_called_again(dead)


async def test_one_of_three_is_slow_and_gets_little(street: Street) -> None:
    slow = street.upstreams[0]
    await slow.switch("slow")
    seen = await street.call()
    asked = await slow.switch("healthy")
    tell(f"one slow: {seen.told()}; it was asked {asked} times")
    assert seen.errors == 0
    assert asked < CALLS / 3 / 4
    await street.see_it_called_again(slow)


async def test_one_of_three_answers_500_and_is_left_alone(street: Street) -> None:
    failing = street.upstreams[0]
    await failing.switch("failing")
    seen = await street.call()
    asked = await failing.switch("healthy")
    tell(f"one failing: {seen.told()}; it was asked {asked} times")
    assert seen.errors == 0
    assert asked <= 3 * AT_ONCE


async def test_all_are_dead_and_no_storm_comes(street: Street) -> None:
    for upstream in street.upstreams:
        await upstream.switch("failing")
    seen = await street.call()
    asked = sum(await street.counted())
    allowed = 1.2 * seen.calls + 10 * (seen.seconds + 10)  # what the budget had gathered in its ten seconds besides
    tell(f"all failing: {seen.told()}; they were asked {asked} times")
    assert seen.errors == seen.calls
    assert asked <= allowed

    began = time.monotonic()
    async with asyncio.timeout(60):
        while (await street.call(4, 1)).errors:
            await asyncio.sleep(0.1)
    tell(f"answered again after {time.monotonic() - began:.1f} s")
    assert (await street.call(60)).errors == 0


async def test_the_registry_is_dead_and_nobody_notices(upstreams: list[Upstream], proxies: list[Proxy]) -> None:
    async with ConsulServer() as registry:
        url = f"consul://{urlsplit(registry.url).netloc}"
        registrar = connect(url, Telemetry("stock", exporter="none"))
        assert isinstance(registrar, Registrar)
        for proxy in proxies:
            await registrar.register("stock", Endpoint(proxy.url))
        async with calling(upstreams, proxies, {"discovery_url": url}) as street:
            await registry.kill()
            seen = await street.call()
            tell(f"registry dead: {seen.told()}")
            assert seen.errors == 0
        await registrar.close()


async def test_the_network_to_one_swallows_everything_and_others_answer(street: Street) -> None:
    street.proxies[0].swallow()
    seen = await street.call()
    tell(f"black hole: {seen.told()}")
    assert seen.errors == 0

    await street.proxies[0].refuse()
    await street.proxies[0].open()
    await street.see_it_called_again(street.upstreams[0])


async def test_without_a_time_out_of_attempts_others_answer_who_asked_into_the_black_hole(
    upstreams: list[Upstream], proxies: list[Proxy]
) -> None:
    services: dict[str, object] = {"services": {"stock": [proxy.url for proxy in proxies]}}
    async with calling(upstreams, proxies, services, attempt_timeout=None) as street:
        street.proxies[0].swallow()
        seen = await street.call()
        tell(f"black hole, no time-out of attempts: {seen.told()}")
        assert seen.errors == 0


async def test_the_network_to_all_swallows_everything_and_every_call_ends(street: Street) -> None:
    for proxy in street.proxies:
        proxy.swallow()
    seen = await street.call(200)
    tell(f"all in a black hole: {seen.told()}")
    assert seen.errors == seen.calls == 200

    for proxy in street.proxies:
        await proxy.refuse()
        await proxy.open()
    began = time.monotonic()
    async with asyncio.timeout(60):
        while (await street.call(4, 1)).errors:
            await asyncio.sleep(0.1)
    tell(f"answered again after {time.monotonic() - began:.1f} s")
