"""The Consul adapter passes the suites that every adapter passes, against a stand-in for an agent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from microkit.discovery.consul import ConsulDiscovery, ConsulOptions
from microkit.discovery.port import Discovery, Endpoint
from microkit.telemetry import Telemetry
from microkit.testing.consul import ConsulServer, Fault
from microkit.testing.discovery_faults import DiscoveryFaults
from microkit.testing.discovery_suite import DiscoveryPromises, DiscoverySuite

pytestmark = pytest.mark.anyio


class TestConsul(DiscoverySuite, DiscoveryFaults):
    promises = DiscoveryPromises(registers=True, remote=True, describes=True, forgets_dead=True)

    @pytest.fixture(autouse=True)
    async def _server(self) -> AsyncIterator[None]:
        self.telemetry = Telemetry("test")
        async with ConsulServer() as self.consul:
            self.registrar = await self.open(max_staleness=3600)
            yield
            self.consul.fault = None
            await self.registrar.close()
        await self.telemetry.close()

    async def open(self, *, max_staleness: float) -> ConsulDiscovery:
        options = ConsulOptions.from_url(f"{self.consul.url}?ttl=3s&wait=5s")
        return ConsulDiscovery(options, self.telemetry, max_staleness=max_staleness)

    async def announce(self, service: str, endpoint: Endpoint) -> None:
        await self.registrar.register(service, endpoint)

    async def withdraw(self, service: str, endpoint: Endpoint) -> None:
        await self.registrar.deregister(service, endpoint)

    async def kill(self) -> None:
        await self.consul.kill()

    async def revive(self) -> None:
        await self.consul.start()

    async def empty(self) -> None:
        self.consul.fault = Fault(empty=True, path="/v1/health/")
        self.consul.touch()

    async def fill(self) -> None:
        self.consul.fault = None
        self.consul.touch()

    async def hang(self) -> None:
        self.consul.fault = Fault(hang=True)

    async def forget(self) -> None:
        await self.consul.restart()

    async def die(self, discovery: Discovery) -> None:
        assert isinstance(discovery, ConsulDiscovery)
        for registration in discovery._registrations.values():
            assert registration._task is not None
            registration._task.cancel()
        discovery._registrations.clear()
        await asyncio.sleep(0)
        for registration in self.registrar._registrations.values():  # who lives has said so in the meantime
            assert await self.registrar._entries.renew(registration._service, registration._endpoint)
        self.consul.agent.advance(2.9)
        for registration in self.registrar._registrations.values():
            assert await self.registrar._entries.renew(registration._service, registration._endpoint)
        self.consul.agent.advance(0.2)

    def asked(self) -> int:
        return asked(self.telemetry)


def asked(telemetry: Telemetry) -> int:
    """Answers and failures, as the metrics count them: what is refused reaches no server that could count."""
    return int(
        sum(
            sample.value
            for family in telemetry.registry.collect()
            for sample in family.samples
            if sample.name == "microkit_discovery_answers_total"
        )
    )
