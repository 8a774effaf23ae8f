"""Discovery by a Consul agent."""

from __future__ import annotations

import asyncio

from microkit.discovery.consul.catalog import ConsulCatalog
from microkit.discovery.consul.entries import ConsulEntries
from microkit.discovery.consul.http import Client
from microkit.discovery.consul.options import ConsulOptions
from microkit.discovery.directory import MAX_STALENESS, Directory
from microkit.discovery.metrics import DiscoveryMetrics
from microkit.discovery.port import Endpoint
from microkit.discovery.registration import Registration
from microkit.telemetry import Telemetry


class ConsulDiscovery(Directory):
    """Resolver, watcher and registrar. ``max_staleness`` is in seconds."""

    def __init__(self, options: ConsulOptions, telemetry: Telemetry, *, max_staleness: float = MAX_STALENESS) -> None:
        self._client = Client(options)
        where = f"Consul at {options.host}:{options.port}"
        super().__init__(ConsulCatalog(self._client, options), telemetry, where=where, max_staleness=max_staleness)
        self._agent = where
        self._options = options
        self._entries = ConsulEntries(self._client, options)
        self._registration_metrics = DiscoveryMetrics(telemetry)
        self._registrations: dict[tuple[str, str], Registration] = {}

    async def register(self, service: str, endpoint: Endpoint) -> None:
        await self.deregister(service, endpoint)
        kept = self._registrations[service, endpoint.id] = Registration(
            self._entries,
            service,
            endpoint,
            # Three times within a TTL: two lost heartbeats make nobody critical.
            every=self._options.ttl / 3 if self._options.check == "ttl" else self._options.interval,
            where=self._agent,
            metrics=self._registration_metrics,
        )
        await kept.start()

    async def deregister(self, service: str, endpoint: Endpoint) -> None:
        kept = self._registrations.pop((service, endpoint.id), None)
        if kept is not None:
            await kept.stop()

    async def close(self) -> None:
        """Ends the following of services, and takes out who is still registered."""
        kept, self._registrations = list(self._registrations.values()), {}
        await asyncio.gather(*(registration.stop() for registration in kept))
        await super().close()
        await self._client.http.close()
