"""A system of many processes as the console sees it: by HTTP, in its databases, and by the spans that it sends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp

from microkit.bus.connect import connect
from microkit.console.desk import Document, Post
from microkit.db import Database
from microkit.declared import topics_of
from microkit.fleet import Copy, Fleet
from microkit.outbox import install
from microkit.settings import ServiceSettings
from microkit.telemetry import Telemetry, TraceRing

_PATIENCE = aiohttp.ClientTimeout(total=2)


class FleetSeen:
    """An :class:`~microkit.console.observe.Observed` and a ``Seeded``. Until a fleet is followed it is empty."""

    def __init__(self, name: str, ring: TraceRing) -> None:
        self.name = name
        self.ring = ring
        self.databases: Mapping[str, Database] = {}
        self.posts: Sequence[Post] = ()
        self.urls: Mapping[str, str] = {}
        self.settings: Mapping[str, ServiceSettings] = {}
        self.fleet: Fleet | None = None
        """The fleet that is followed."""
        self._session: aiohttp.ClientSession | None = None

    @asynccontextmanager
    async def following(self, fleet: Fleet) -> AsyncIterator[None]:
        """Sees ``fleet`` while the block runs: with one small pool for each database, and a client of the bus."""
        async with AsyncExitStack() as owned:
            telemetry = Telemetry("console", exporter="none")
            owned.push_async_callback(telemetry.close)
            databases: dict[str, Database] = {}
            posts: list[Post] = []
            bus = connect(fleet.bus_url)
            await bus.start()
            owned.push_async_callback(bus.close)
            for service in fleet.system.services:
                if not service.declared.stores:
                    continue
                url = fleet.settings[service.name].database_url.get_secret_value()
                database = Database(url, telemetry=telemetry, pool_size=1, max_overflow=2)
                install(database, service.name)  # demo data may publish; the service's own relay sends it
                await database.start()
                owned.push_async_callback(database.close)
                databases[service.name] = database
                groups = {group: topics_of(listeners) for group, listeners in service.declared.groups().items()}
                posts.append(Post(service.name, bus, database, groups))
            self._session = await owned.enter_async_context(aiohttp.ClientSession(timeout=_PATIENCE, trust_env=False))
            self.databases, self.posts, self.urls, self.settings = databases, posts, fleet.urls, fleet.settings
            self.fleet = fleet
            try:
                yield
            finally:
                self.fleet = None
                self.databases, self.posts = {}, ()

    async def services(self) -> list[Document]:
        if self.fleet is None:
            return []
        return list(await asyncio.gather(*(self._seen(child.copy) for child in self.fleet.children)))

    async def _seen(self, copy: Copy) -> Document:
        document: Any = {}
        if self._session is not None:
            try:
                async with self._session.get(f"{copy.url}/health") as response:
                    document = await response.json(content_type=None)
            except (aiohttp.ClientError, TimeoutError, ValueError):
                document = {}
        known = document if isinstance(document, dict) else {}
        return {
            "name": copy.name,
            "url": copy.url,
            "state": str(known.get("state", "not answering")),
            "parts": known.get("parts", {}),
        }
