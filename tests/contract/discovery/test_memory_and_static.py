"""The registries without a server pass the suite that every adapter passes."""

from __future__ import annotations

import pytest

from microkit.discovery.memory import MemoryRegistry
from microkit.discovery.port import Discovery, Endpoint
from microkit.discovery.static import StaticResolver
from microkit.testing.discovery_suite import DiscoveryPromises, DiscoverySuite

pytestmark = pytest.mark.anyio


class TestMemoryRegistry(DiscoverySuite):
    promises = DiscoveryPromises(registers=True, describes=True)

    @pytest.fixture(autouse=True)
    def _registry(self) -> None:
        self.registry = MemoryRegistry()

    async def open(self, *, max_staleness: float) -> Discovery:
        return self.registry

    async def announce(self, service: str, endpoint: Endpoint) -> None:
        await self.registry.register(service, endpoint)

    async def withdraw(self, service: str, endpoint: Endpoint) -> None:
        await self.registry.deregister(service, endpoint)


class TestStaticResolver(DiscoverySuite):
    promises = DiscoveryPromises(changes=False)

    @pytest.fixture(autouse=True)
    def _table(self) -> None:
        self.urls: dict[str, list[str]] = {}

    async def open(self, *, max_staleness: float) -> Discovery:
        return StaticResolver(self.urls)

    async def announce(self, service: str, endpoint: Endpoint) -> None:
        self.urls.setdefault(service, []).append(endpoint.url)
