"""What ``microkit doctor`` looks at, for one service."""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

from sqlalchemy import make_url

from microkit.bus.connect import connect as connect_bus
from microkit.db import Database
from microkit.db.facts import server_facts
from microkit.db.opening import said_of_opening
from microkit.db.standing import standing
from microkit.discovery.connect import connect as connect_discovery
from microkit.errors import ConfigurationError, MicrokitError
from microkit.pooling import pool_options, share_of
from microkit.redaction import redact_text
from microkit.service import Service
from microkit.settings import ServiceSettings, WrongSettings
from microkit.telemetry import Telemetry
from microkit.web import Server

Verdict = Literal["ok", "warning", "error"]

PATIENCE: Final = 10.0
"""Seconds for one server to answer."""

_CLOCK: Final = 1.0
_ROOM: Final = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: of which service, what was looked at, how it is, and what to do where it is not well."""

    service: str
    what: str
    verdict: Verdict
    said: str


@dataclass(frozen=True, slots=True)
class Demand:
    """What a service's processes may take of the server at ``where``, which allows ``most`` connections to all."""

    service: str
    where: str
    connections: int
    most: int


class Checks:
    """Looks at one service, changing nothing. ``demands`` has what it may take of a database server, once looked at."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.demands: list[Demand] = []

    async def run(self) -> AsyncIterator[Finding]:
        """Every finding as it is made."""
        try:
            settings = self._service.settings()
        except WrongSettings as wrong:
            for trouble in wrong.troubles:
                yield self._finding("settings", "error", trouble)
            return
        yield self._finding("settings", "ok", f"{settings.environment}, Python {platform.python_version()}")
        for name, host, port in self._ports(settings):
            yield self._port(name, host, port)
        if self._service.declared.stores:
            async for finding in self._database(settings):
                yield finding
            yield await self._answering("bus", lambda: _bus(settings))
        yield await self._answering("registry", lambda: self._registry(settings))

    def _finding(self, what: str, verdict: Verdict, said: str) -> Finding:
        return Finding(self._service.name, what, verdict, redact_text(said))

    def _ports(self, settings: ServiceSettings) -> list[tuple[str, str, int]]:
        found = [("port", settings.host, settings.port)]
        if settings.admin_port is not None:
            found.append(("admin port", settings.admin_host, settings.admin_port))
        return found

    def _port(self, name: str, host: str, port: int) -> Finding:
        server = Server(_nothing, host, port)
        try:
            server.bind()
        except ConfigurationError as error:
            if "taken" in str(error):
                return self._finding(name, "warning", f"{error}; or this service runs there already")
            return self._finding(name, "error", str(error))
        server.close()
        return self._finding(name, "ok", f"{host}:{port} is free")

    async def _answering(self, what: str, ask: Callable[[], Awaitable[str]]) -> Finding:
        try:
            async with asyncio.timeout(PATIENCE):
                return self._finding(what, "ok", await ask())
        except TimeoutError:
            return self._finding(what, "error", f"no answer in {PATIENCE:g} s: see the address and the network")
        except (MicrokitError, OSError) as error:
            return self._finding(what, "error", str(error) or type(error).__name__)

    async def _registry(self, settings: ServiceSettings) -> str:
        url = settings.discovery_url.get_secret_value()
        telemetry = Telemetry("doctor", exporter="none", log_level="CRITICAL")
        discovery = connect_discovery(url, telemetry, services=settings.services)
        try:
            if urlsplit(url).scheme not in {"static", "memory"}:
                try:
                    await discovery.resolve(self._service.name)
                except MicrokitError as error:
                    troubles = [standing.trouble for standing in discovery.standings() if standing.trouble]
                    if troubles:
                        raise ConfigurationError(f"{redact_text(url)}: {troubles[0]}") from error
            return redact_text(url)
        finally:
            await discovery.close()

    async def _database(self, settings: ServiceSettings) -> AsyncIterator[Finding]:
        url = settings.database_url.get_secret_value()
        parsed = make_url(url)
        if parsed.drivername.startswith("sqlite") and parsed.database not in (None, "", ":memory:"):
            file = Path(str(parsed.database))
            said = _no_room(file)
            if said is not None:
                yield self._finding("database", "error", said)
                return
            if not _is_there(file):
                yield self._finding("database", "warning", f"{file} is not there yet: it is made at the first start")
                return
        async with _opened(url, settings, self._service) as (database, trouble):
            if database is None:
                yield self._finding("database", "error", trouble)
                return
            async for finding in self._server(database, settings):
                yield finding
            stands = await standing(database, self._service.declared.migrations)
            missing, newer = stands.pending, stands.said(self._service.name)
            if newer is not None:
                yield self._finding("migrations", "error" if stands.broken else "warning", newer)
            elif missing and not settings.migrate_on_start:
                todo = f"{len(missing)} are missing (the next: {missing[0]}); run microkit migrate {self._service.name}"
                yield self._finding("migrations", "error", todo)
            else:
                yield self._finding(
                    "migrations", "ok", f"{len(missing)} to come at the start" if missing else "none missing"
                )

    async def _server(self, database: Database, settings: ServiceSettings) -> AsyncIterator[Finding]:
        facts = await server_facts(database)
        where = redact_text(settings.database_url.get_secret_value())
        if facts.trouble is not None:
            yield self._finding("database", "error", facts.trouble)
        else:
            yield self._finding("database", "ok", f"{where}: {facts.dialect} {facts.version}")
        if facts.connections is None:
            return
        off = abs(facts.clock) - facts.trip
        if off > _CLOCK:
            ahead = "ahead of" if facts.clock > 0 else "behind"
            yield self._finding(
                "clock", "warning", f"the database's is {off:.1f} s {ahead} this machine's: keep both with NTP"
            )
        else:
            yield self._finding("clock", "ok", f"{facts.clock * 1000:+.0f} ms, give or take {facts.trip * 1000:.0f}")
        share = share_of(settings)
        misfit = share.misfit(facts.connections)
        yield self._finding(
            "pool", "error" if misfit else "ok", misfit or f"{share.connections} of {facts.connections} connections"
        )
        parsed = make_url(settings.database_url.get_secret_value())
        host = f"{parsed.host or parsed.query.get('host', 'localhost')}:{parsed.port or 5432}"
        self.demands.append(Demand(self._service.name, host, share.connections, facts.connections))


def together(demands: list[Demand]) -> list[Finding]:
    """Whether the services that share a server fit into it together, where each alone does."""
    found = []
    for where in dict.fromkeys(demand.where for demand in demands):
        sharing = [demand for demand in demands if demand.where == where]
        wanted, most = sum(demand.connections for demand in sharing), min(demand.most for demand in sharing)
        if len(sharing) > 1 and wanted > most:
            parts = " + ".join(f"{demand.connections} ({demand.service})" for demand in sharing)
            said = (
                f"together {parts} = {wanted} connections, and {where} allows {most}: give the services smaller "
                "pools, or the server a higher max_connections"
            )
            found.append(Finding("", "pools", "error", said))
    return found


@asynccontextmanager
async def _opened(url: str, settings: ServiceSettings, service: Service) -> AsyncIterator[tuple[Database | None, str]]:
    """The database, or why there is none."""
    telemetry = Telemetry("doctor", exporter="none", log_level="CRITICAL")
    try:
        database = Database(
            url, telemetry=telemetry, pool_size=1, max_overflow=1, tables=service.declared.tables,
            options=pool_options(settings),
        )  # fmt: skip
    except ConfigurationError as error:
        yield None, str(error)
        return
    try:
        trouble = ""
        try:
            async with asyncio.timeout(PATIENCE):
                await database.start()
        except TimeoutError:
            trouble = f"no answer in {PATIENCE:g} s: see the host, the port and the network"
        except MicrokitError as error:
            cause = error.__cause__
            known = (
                f": {said_of_opening(cause)}" if cause is not None and not isinstance(error, ConfigurationError) else ""
            )
            trouble = f"{error}{known}"
        yield (None if trouble else database), trouble
    finally:
        await database.close()


async def _bus(settings: ServiceSettings) -> str:
    url = settings.bus_url.get_secret_value()
    bus = connect_bus(url)
    try:
        await bus.start()
        await bus.ping()
    finally:
        await bus.close()
    return redact_text(url)


def _is_there(file: Path) -> bool:
    return file.exists()


def _no_room(file: Path) -> str | None:
    """Why SQLite cannot write at ``file``."""
    folder = next(each for each in (file.parent, *file.parent.absolute().parents) if each.exists())
    if not folder.is_dir():
        return f"{folder} is no folder: name another file in the URL"
    if not os.access(folder, os.W_OK | os.X_OK) or (file.exists() and not os.access(file, os.W_OK)):
        return f"{file} cannot be written: let this user write in {folder}, or name another file in the URL"
    free = shutil.disk_usage(folder).free
    if free < _ROOM:
        left = free // 1024 // 1024
        return f"the disk of {folder} is full ({left} MiB left): make room, or name another file in the URL"
    return None


async def _nothing(*_: object) -> None: ...
