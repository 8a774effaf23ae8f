"""What a running instance is made of: opened by the assembly, used by the instance and its admin endpoints."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import aiohttp

from microkit.auth import ServiceTokens, Verifier
from microkit.bus.consumer import ConsumerRuntime
from microkit.bus.port import Bus
from microkit.client import HttpCaller, Policies, Upstream
from microkit.db import Database
from microkit.discovery.port import Discovery
from microkit.outbox import Relay
from microkit.resilience.rate import RateLimiter
from microkit.settings import ServiceSettings
from microkit.telemetry import Telemetry


class Worker(Protocol):
    """Something that works in the background while the instance is ready."""

    async def start(self) -> None: ...

    async def stop(self, timeout: float) -> None:  # noqa: ASYNC109  how long to drain, not a failure
        ...


@dataclass(slots=True)
class Parts:
    """What a running instance owns. The ``relay`` starts first and stops last, because the ``workers`` publish."""

    telemetry: Telemetry
    limiter: RateLimiter
    database: Database | None
    bus: Bus | None
    resolver: Discovery
    session: aiohttp.ClientSession
    tokens: ServiceTokens | None
    verifier: Verifier | None
    settings: ServiceSettings
    upstreams: dict[str, Upstream] = field(default_factory=dict)
    callers: dict[str, HttpCaller] = field(default_factory=dict)
    relay: Relay | None = None
    consumers: ConsumerRuntime | None = None
    workers: list[Worker] = field(default_factory=list)
    resources: dict[Any, object] = field(default_factory=dict)

    def caller(self, service: str) -> HttpCaller:
        """What carries out the calls to a service, made once."""
        found = self.callers.get(service)
        if found is None:
            found = self.callers[service] = HttpCaller(
                self.upstream(service),
                session=self.session,
                telemetry=self.telemetry,
                tokens=self.tokens,
                timeout=self.settings.request_timeout,
                clients=self.settings.clients,
            )
        return found

    def upstream(self, service: str) -> Upstream:
        """The instances of a service, with their breakers and its retry budget, made once."""
        found = self.upstreams.get(service)
        if found is None:
            found = self.upstreams[service] = Upstream(
                service,
                resolver=self.resolver,
                telemetry=self.telemetry,
                guard=self.policies(service).guard(),
                zone=self.settings.zone or "",
            )
        return found

    def policies(self, service: str) -> Policies:
        """How the settings want a service to be called."""
        return Policies(service, self.settings.clients, self.settings.request_timeout)
