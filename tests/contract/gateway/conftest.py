"""A real gateway on a real socket, in front of real servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest

from microkit.auth.principal import Principal
from microkit.contract import ANYONE
from microkit.discovery.static import StaticResolver
from microkit.errors import Unauthorized
from microkit.gateway import BoundGateway, Gateway, Route
from microkit.gateway.filters import Filter
from microkit.telemetry import Telemetry, TraceRing
from microkit.web import Limits, Mount, Surface, WebApp
from tests.contract.gateway.servers import behaving, serving


@dataclass
class Tokens:
    """Tokens that the tests' verifier knows."""

    principals: dict[str, Principal] = field(
        default_factory=lambda: {
            "alice": Principal("user-alice", frozenset({"member"}), "alice"),
            "root": Principal("user-root", frozenset({"member", "admin"}), "root"),
            "payment": Principal("service:payment", frozenset({"service", "service:payment"}), "payment"),
        }
    )

    async def verify(self, token: str) -> Principal:
        if token not in self.principals:
            raise Unauthorized("The token is not valid", headers={"WWW-Authenticate": 'Bearer error="invalid_token"'})
        return self.principals[token]


@dataclass
class Running:
    """A gateway that listens at ``url``; ``client`` sends to it as any browser would."""

    url: str
    bound: BoundGateway
    ring: TraceRing
    telemetry: Telemetry
    client: aiohttp.ClientSession

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    async def raw(self, request: bytes, *, wait: float = 30.0) -> bytes:
        """Everything that comes back for ``request`` as it is, until the gateway closes or nothing more comes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(request)
            await writer.drain()
            received = b""
            while True:
                try:
                    piece = await asyncio.wait_for(reader.read(65536), wait)
                except TimeoutError:
                    return received
                if not piece:
                    return received
                received += piece
        finally:
            writer.close()


Start = Callable[..., Awaitable[Running]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Starts a gateway with ``routes`` in front of services given as an app, a behaviour, a URL, or a list of them."""
    async with AsyncExitStack() as stack:

        async def listen(instance: Any) -> str:
            if isinstance(instance, str):
                return instance
            if "reader" in getattr(instance, "__annotations__", {}):
                return await stack.enter_async_context(behaving(instance))
            return await stack.enter_async_context(serving(instance))

        async def begin(
            routes: Sequence[Route],
            upstreams: dict[str, Any],
            *,
            trusted_proxies: Sequence[str] = (),
            body_limit: int = 10_000_000,
            filters: Sequence[Filter] = (),
            **options: Any,
        ) -> Running:
            urls: dict[str, list[str]] = {}
            for service, upstream in upstreams.items():
                instances = upstream if isinstance(upstream, list) else [upstream]
                urls[service] = [await listen(instance) for instance in instances]
            ring = TraceRing()
            telemetry = Telemetry("gateway", ring=ring)
            bound = await Gateway(routes, title="Shop", body_limit=body_limit, filters=filters).bind(
                telemetry=telemetry,
                verify=options.pop("verify", Tokens().verify),
                resolver=StaticResolver(urls),
                trusted_proxies=trusted_proxies,
                **options,
            )
            stack.push_async_callback(bound.close)
            surface = Surface("gateway", mounts=[Mount("/", bound, ANYONE)])
            url = await stack.enter_async_context(
                serving(WebApp(surface, telemetry=telemetry, limits=Limits(shedding=False)))
            )
            client = await stack.enter_async_context(aiohttp.ClientSession(auto_decompress=False))
            return Running(url, bound, ring, telemetry, client)

        yield begin
