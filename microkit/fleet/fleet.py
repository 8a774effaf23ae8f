"""A system in many processes on real servers, in the order in which it starts and ends."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import aiohttp

from microkit.db.server import DatabaseServer
from microkit.development import Surroundings, chosen_settings, own_databases
from microkit.errors import ConfigurationError
from microkit.fleet.child import Child, Say
from microkit.fleet.copies import Copy, copies_of
from microkit.gateway import Gateway
from microkit.servers.kafka import KafkaServer
from microkit.servers.postgres import PostgresServer
from microkit.servers.process import ServerProcess
from microkit.servers.valkey import ValkeyServer
from microkit.settings import ServiceSettings
from microkit.system import System

STARTING: Final = 60.0
"""Seconds that a process may take until it is ready."""

_WATCH: Final = 0.5

BusKind = Literal["redis", "kafka"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a fleet is made of. ``bus`` is the kind of broker that is started, unless ``bus_url`` names one;
    ``databases`` is the URL of a PostgreSQL server in place of one that is started. ``scale`` is how many copies a
    service has, one where it says nothing; ``given`` are settings, by service, that win over everything."""

    folder: Path
    bus: BusKind = "redis"
    bus_url: str | None = None
    databases: str | None = None
    scale: Mapping[str, int] = field(default_factory=dict)
    given: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    shared: Mapping[str, object] = field(default_factory=dict)
    """Settings of all services, by field."""
    inherited: tuple[int, ...] = ()
    """Descriptors that every process gets: what they stand for lives as long as the last of them."""


class Fleet:
    """A running system of processes. Made by :meth:`running`."""

    def __init__(
        self,
        system: System,
        settings: Mapping[str, ServiceSettings],
        servers: Mapping[str, ServerProcess],
        children: list[Child],
        say: Say,
    ) -> None:
        self.system = system
        self.settings = settings
        self.servers = servers
        """The servers that are ours, by name: ``postgresql``, ``redis``, ``kafka``."""
        self.children = children
        self._server_restarts: Counter[str] = Counter()
        self._away_until: dict[str, float] = {}
        self._say = say

    @property
    def name(self) -> str:
        return self.system.name

    @property
    def bus_url(self) -> str:
        """Of the bus that the services share."""
        return next(iter(self.settings.values())).bus_url.get_secret_value()

    @property
    def databases_url(self) -> str | None:
        """Of our own PostgreSQL, if it is ours."""
        server = self.servers.get("postgresql")
        return server.url if isinstance(server, PostgresServer) else None

    @property
    def urls(self) -> dict[str, str]:
        """Where the first copy of each service listens."""
        return {child.copy.service: child.copy.url for child in self.children if child.copy.number == 1}

    def processes(self) -> list[dict[str, object]]:
        """Every process: its ``name``, ``kind`` (``service`` or ``server``), ``service``, ``url``, ``pid`` (``None``
        while it has none) and how often it was started again (``restarts``)."""
        copies: list[dict[str, object]] = [
            {
                "name": child.copy.name,
                "kind": "service",
                "service": child.copy.service,
                "url": child.copy.url,
                "pid": child.pid,
                "restarts": child.restarts,
            }
            for child in self.children
        ]
        servers: list[dict[str, object]] = [
            {
                "name": name,
                "kind": "server",
                "service": None,
                "url": f"127.0.0.1:{server.port}",
                "pid": server.pid if server.running else None,
                "restarts": self._server_restarts[name],
            }
            for name, server in self.servers.items()
        ]
        return [*copies, *servers]

    def end(self, name: str, by: Literal["SIGTERM", "SIGKILL"], away: float = 0.0) -> int | None:
        """Sends a signal to the process of this name; its pid, ``None`` where none runs. It is started again, once it
        has been ``away`` for so many seconds."""
        for child in self.children:
            if child.copy.name == name:
                return child.end(signal.Signals[by], away)
        server = self.servers.get(name)
        if server is None or not server.running:
            return None
        self._away_until[name] = time.monotonic() + away
        pid = server.pid
        os.kill(pid, signal.Signals[by])
        return pid

    @classmethod
    @asynccontextmanager
    async def running(cls, system: System, reference: str, wanted: Wanted, say: Say) -> AsyncIterator[Fleet]:
        """Starts everything; ends it in order when the block ends. ``say`` is given every line that a process logs.

        Raises:
            ConfigurationError: something does not start. What had been started is ended again.
        """
        async with AsyncExitStack() as owned:
            servers = _servers(wanted)
            for server in servers.values():
                server.start()  # in this thread: the kernel ties a server's life to the thread that made it
                owned.callback(server.stop)
            settings = await _prepared(system, wanted, servers)
            copies = copies_of(system.services, settings, wanted.scale, wanted.shared)
            fleet = cls(
                system, settings, servers, [Child(copy, reference, say, wanted.inherited) for copy in copies], say
            )
            owned.push_async_callback(fleet._stop)
            session = await owned.enter_async_context(
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2), trust_env=False)
            )
            await fleet._start(session)
            watching = asyncio.create_task(fleet._watch_servers())
            owned.callback(watching.cancel)
            yield fleet

    async def _start(self, session: aiohttp.ClientSession) -> None:
        # First copies first: each brings its database up to date, and the others find it so.
        for first in (True, False):
            starting = [child.start(session, STARTING) for child in self.children if (child.copy.number == 1) is first]
            ended = await asyncio.gather(*starting, return_exceptions=True)
            failed = [error for error in ended if isinstance(error, BaseException)]
            for error in failed:
                if not isinstance(error, ConfigurationError):
                    raise error
            if failed:
                raise ConfigurationError("\n".join(str(error) for error in failed))

    async def _stop(self) -> None:
        """The gateway first, so that nothing new comes in; then all others together. Cancelled, all at once."""
        door = {service.name for service in self.system.services if _is_gateway(service.declared.mounts)}
        failed: list[BaseException] = []
        try:
            for outer in (True, False):
                ending = [child for child in self.children if (child.copy.service in door) is outer]
                stopping = (child.stop(self._patience(child.copy)) for child in ending)
                ended = await asyncio.gather(*stopping, return_exceptions=True)  # the trouble of one is not another's
                failed += [error for error in ended if error is not None]
        except asyncio.CancelledError:  # it is told a second time
            await asyncio.gather(*(child.stop_now() for child in self.children))
            raise
        for error in failed:
            raise error

    def _patience(self, copy: Copy) -> float:
        """Seconds that a process may take to drain: its phases, each bounded by its own settings."""
        settings = self.settings[copy.service]
        return settings.drain_delay + 3 * settings.shutdown_timeout + 5

    async def _watch_servers(self) -> None:
        while True:
            await asyncio.sleep(_WATCH)
            for name, server in self.servers.items():
                if not server.running and time.monotonic() >= self._away_until.get(name, 0.0):
                    self._say(name, f"{server.name} has ended; it is started again")
                    try:
                        server.start()
                        self._server_restarts[name] += 1
                    except (ConfigurationError, OSError, subprocess.SubprocessError) as error:
                        self._say(name, f"{server.name} cannot be started, which is tried again: {error}")


def _is_gateway(mounts: object) -> bool:
    return isinstance(mounts, list) and any(isinstance(mount.app, Gateway) for mount in mounts)


def _servers(wanted: Wanted) -> dict[str, ServerProcess]:
    found: dict[str, ServerProcess] = {}
    makers: dict[str, Callable[[Path], ServerProcess]] = {}
    if wanted.databases is None:
        makers["postgresql"] = PostgresServer
    if wanted.bus_url is None:
        makers[wanted.bus] = _kafka if wanted.bus == "kafka" else _valkey
    for name, make in makers.items():
        folder = (wanted.folder / name).resolve()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found[name] = make(folder)
        found[name].inherit(wanted.inherited)
    return found


def _kafka(folder: Path) -> ServerProcess:
    return KafkaServer(folder, durable=True)


def _valkey(folder: Path) -> ServerProcess:
    return ValkeyServer(folder, durable=True)


async def _prepared(
    system: System, wanted: Wanted, servers: Mapping[str, ServerProcess]
) -> Mapping[str, ServiceSettings]:
    """The settings of every service, with its database made."""
    postgres, broker = servers.get("postgresql"), servers.get(wanted.bus)
    databases = DatabaseServer(postgres.url if isinstance(postgres, PostgresServer) else wanted.databases or "")
    bus = broker.url if isinstance(broker, ValkeyServer | KafkaServer) else wanted.bus_url or ""
    around = Surroundings(wanted.folder, bus, databases)
    settings = chosen_settings(system.name, system.services, system.issuer, around, wanted.given)
    await databases.make(own_databases(databases, system.name, system.services, settings))
    return settings
