"""An instance is known to others while it answers, and not a moment longer."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from sqlalchemy import MetaData

from microkit import ANYONE, ConfigurationError, Service
from microkit.discovery.memory import MemoryRegistry
from microkit.discovery.port import Endpoint
from microkit.errors import MicrokitError
from microkit.testing.consul import ConsulServer

pytestmark = pytest.mark.anyio


async def status(url: str) -> int | None:
    """What is answered there; None where nobody listens."""
    try:
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            return answer.status
    except aiohttp.ClientConnectionError:
        return None


class Recorder(MemoryRegistry):
    """Notes how the instance is in the moment it comes and goes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, int | None, int | None]] = []

    async def register(self, service: str, endpoint: Endpoint) -> None:
        await self._note("registered", endpoint)
        await super().register(service, endpoint)

    async def deregister(self, service: str, endpoint: Endpoint) -> None:
        await self._note("deregistered", endpoint)
        await super().deregister(service, endpoint)

    async def _note(self, what: str, endpoint: Endpoint) -> None:
        ready = await status(f"{endpoint.url}/health/ready")
        self.seen.append((what, ready, await status(f"{endpoint.url}/ping")))


def pinging(tables: MetaData | None = None) -> Service:
    service = Service("pinging", port=0, tables=tables)

    @service.get("/ping", allow=ANYONE)
    async def ping() -> str:
        return "pong"

    return service


async def test_an_instance_registers_when_it_is_ready_and_deregisters_while_it_still_answers() -> None:
    registry = Recorder()
    async with pinging().instance({"drain_delay": "100ms"}, registry=registry) as instance:
        (known,) = await registry.resolve("pinging")
        assert known.url == instance.url
        assert registry.seen == [("registered", 200, 200)]
        stopping = asyncio.create_task(instance.stop())
        async with asyncio.timeout(30):
            while len(registry.seen) == 1:
                await asyncio.sleep(0.001)
        # Whoever has not noticed yet is answered in the drain delay.
        assert await status(f"{known.url}/ping") == 200
        await stopping
    assert registry.seen[1:] == [("deregistered", 503, 200)]
    assert await status(f"{known.url}/ping") is None


async def test_what_the_settings_say_of_an_instance_is_registered() -> None:
    registry = MemoryRegistry()
    settings = {"zone": "eu-1", "tags": ["v2"], "weight": 3, "instance_id": "first", "advertised_url": "http://pod:80"}
    async with pinging().instance(settings, registry=registry):
        assert await registry.resolve("pinging") == (Endpoint("http://pod:80", "first", "eu-1", ("v2",), 3),)


async def test_the_host_that_is_advertised_is_answered() -> None:
    settings = {"advertised_url": "http://pod.internal:80", "allowed_hosts": ["billing.example.com"]}
    async with pinging().instance(settings) as instance, aiohttp.ClientSession() as session:
        for host, expected in (("pod.internal:80", 200), ("billing.example.com", 200), ("elsewhere.example", 400)):
            async with session.get(f"{instance.url}/ping", headers={"Host": host}) as answer:
                assert (answer.status < 400) == (expected == 200), host


@pytest.fixture
async def consul() -> AsyncIterator[ConsulServer]:
    async with ConsulServer() as consul:
        yield consul


async def test_a_real_instance_is_in_consul_while_it_runs(consul: ConsulServer) -> None:
    settings = {"discovery_url": f"{consul.url}?check=http", "zone": "eu-1", "tags": ["v2"]}
    async with pinging().instance(settings) as instance:
        (known,) = consul.agent.services.values()
        await consul.run_checks()
        assert known.passing
        assert f"http://{known.address}:{known.port}" == instance.url
        assert (known.meta["zone"], known.tags) == ("eu-1", ["v2"])
        async with aiohttp.ClientSession() as session, session.get(f"{instance.url}/metrics") as answer:
            assert "microkit_discovery_registered 1.0" in await answer.text()
    assert not consul.agent.services


async def test_an_instance_starts_and_stops_while_its_registry_is_away(consul: ConsulServer) -> None:
    await consul.kill()
    async with pinging().instance({"discovery_url": consul.url}) as instance:
        assert await status(f"{instance.url}/health/ready") == 200


async def test_a_registry_that_is_away_is_shown_in_health_and_leaves_the_service_ready(consul: ConsulServer) -> None:
    async with pinging().instance({"discovery_url": consul.url}) as instance:
        assert (await instance.parts.resolver.resolve("pinging"))[0].url == instance.url
        await consul.kill()
        async with asyncio.timeout(30), aiohttp.ClientSession() as session:
            while True:
                async with session.get(f"{instance.url}/health") as answer:
                    part = (await answer.json())["parts"]["discovery"]
                if part["status"] == "down":
                    break
                await asyncio.sleep(0.05)
        assert "pinging: 1 of" in part["error"]
        assert "the registry is away" in part["error"]
        assert await status(f"{instance.url}/health/ready") == 200


async def test_an_instance_that_failed_to_start_may_be_started_again(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = {
            "port": taken.getsockname()[1],
            "database_url": f"sqlite+aiosqlite:///{tmp_path}/pinging.db",
            "migrate_on_start": True,
        }
        instance = pinging(MetaData()).instance(settings, registry=MemoryRegistry())
        with pytest.raises(ConfigurationError, match=str(taken.getsockname()[1])):
            await instance.start()
        assert not instance.running
    async with instance:
        assert await status(f"{instance.url}/health/ready") == 200
        with pytest.raises(MicrokitError, match="runs already"):
            await instance.start()


async def test_an_instance_that_was_stopped_may_be_started_again() -> None:
    registry = MemoryRegistry()
    instance = pinging().instance(registry=registry)
    for _ in range(2):
        async with instance:
            assert await status(f"{instance.url}/ping") == 200
            assert len(await registry.resolve("pinging")) == 1
        assert not instance.running
