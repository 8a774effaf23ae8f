"""What ``microkit doctor`` looks at, for one service."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from microkit.bus.connect import connect as connect_bus
from microkit.bus.connect import started
from microkit.cli.findings import Demand, Finding, Verdict, bounded, finding
from microkit.db import Database
from microkit.db.facts import ServerFacts, Share, server_facts
from microkit.db.opening import ROOM, unwritable
from microkit.db.standing import standing
from microkit.discovery.own import discovery_of
from microkit.errors import ConfigurationError, MicrokitError
from microkit.pooling import pool_options, share_of
from microkit.production import refusals
from microkit.redaction import redact_text
from microkit.service import Service
from microkit.settings import ServiceSettings, WrongSettings
from microkit.telemetry import Telemetry
from microkit.web import Server

_CLOCK: Final = 1.0

Section = tuple[str, Callable[[], Awaitable[list[Finding]]]]


class Checks:
    """Looks at one service, changing nothing. ``demands`` has what it may take of a database server, once looked at;
    ``ours`` are the addresses where it is known to run already."""

    def __init__(self, service: Service, ours: frozenset[str] = frozenset()) -> None:
        self._service = service
        self._ours = ours
        self.demands: list[Demand] = []

    async def run(self) -> list[Finding]:
        """Everything that is found, looked for at the same time, in a fixed order."""
        try:
            settings = self._service.settings()
        except WrongSettings as wrong:
            return [self._found("settings", "error", trouble) for trouble in wrong.troubles]
        except MicrokitError as error:
            return [self._found("settings", "error", str(error))]
        found = self._settings(settings) + self._ports(settings)
        sections = [bounded(self._service.name, what, look) for what, look in self._sections(settings)]
        return found + [each for section in await asyncio.gather(*sections) for each in section]

    def _found(self, what: str, verdict: Verdict, said: str) -> Finding:
        return finding(self._service.name, what, verdict, said)

    def _sections(self, settings: ServiceSettings) -> list[Section]:
        sections: list[Section] = []
        if self._service.declared.stores:
            sections.append(("database", lambda: self._database(settings)))
            if settings.database_replica_url is not None:
                sections.append(("replica", lambda: self._replica(settings)))
            sections.append(("bus", lambda: self._bus(settings)))
        sections.append(("registry", lambda: self._registry(settings)))
        return sections

    def _settings(self, settings: ServiceSettings) -> list[Finding]:
        refused = refusals(self._service.declared, settings)
        if refused:
            return [self._found("settings", "error", each) for each in refused]
        return [self._found("settings", "ok", f"{settings.environment}, Python {platform.python_version()}")]

    def _ports(self, settings: ServiceSettings) -> list[Finding]:
        found = [self._port("port", settings.host, settings.port)]
        if settings.admin_port is not None:
            found.append(self._port("admin port", settings.admin_host, settings.admin_port))
        return found

    def _port(self, name: str, host: str, port: int) -> Finding:
        if f"{host}:{port}" in self._ours:
            return self._found(name, "ok", f"{host}:{port} is taken by this service, which runs")
        server = Server(_nothing, host, port)
        try:
            server.bind()
        except ConfigurationError as error:
            if "taken" in str(error):
                return self._found(name, "warning", f"{error}; or this service runs there already")
            return self._found(name, "error", str(error))
        server.close()
        return self._found(name, "ok", f"{host}:{port} is free")

    async def _bus(self, settings: ServiceSettings) -> list[Finding]:
        url = settings.bus_url.get_secret_value()
        bus = connect_bus(url)
        try:
            await started(bus, url)
            await bus.ping()
        finally:
            await bus.close()
        return [self._found("bus", "ok", url)]

    async def _registry(self, settings: ServiceSettings) -> list[Finding]:
        url = settings.discovery_url.get_secret_value()
        discovery = discovery_of(settings, Telemetry("doctor", exporter="none", log_level="CRITICAL"))
        try:
            if urlsplit(url).scheme not in {"static", "memory"}:
                try:
                    await discovery.resolve(self._service.name)
                except MicrokitError as error:
                    troubles = [standing.trouble for standing in discovery.standings() if standing.trouble]
                    if troubles:
                        raise ConfigurationError(f"{redact_text(url)}: {troubles[0]}") from error
            return [self._found("registry", "ok", url)]
        finally:
            await discovery.close()

    async def _database(self, settings: ServiceSettings) -> list[Finding]:
        url = settings.database_url.get_secret_value()
        file = _file_of(url)
        if file is not None:
            if (said := unwritable(file, ROOM)) is not None:
                return [self._found("database", "error", said)]
            if not file.exists():
                return [self._found("database", "warning", f"{file} is not there yet: it is made at the first start")]
        async with self._opened(url, settings) as database:
            facts = await server_facts(database)
            found = [self._version("database", url, facts)]
            if facts.connections is not None:
                found += [self._clock(facts), self._pool("pool", share_of(settings), url, facts.connections)]
            return [*found, await self._migrations(database, settings)]

    async def _replica(self, settings: ServiceSettings) -> list[Finding]:
        assert settings.database_replica_url is not None  # noqa: S101  it is asked for only where there is one
        url = settings.database_replica_url.get_secret_value()
        try:
            async with self._opened(url, settings) as database:
                facts = await server_facts(database)
        except MicrokitError as error:
            return [self._found("replica", "warning", f"{error}; until then the primary serves its readers")]
        if facts.connections is not None:
            found = self._pool("replica", replace(share_of(settings), beside=0), url, facts.connections)
            if found.verdict != "ok":
                return [found]
        return [self._found("replica", "ok", url)]

    def _version(self, what: str, url: str, facts: ServerFacts) -> Finding:
        if facts.trouble is not None:
            return self._found(what, "error", facts.trouble)
        return self._found(what, "ok", f"{redact_text(url)}: {facts.dialect} {facts.version}")

    def _clock(self, facts: ServerFacts) -> Finding:
        if abs(facts.clock) - facts.trip > _CLOCK:
            how = "ahead of" if facts.clock > 0 else "behind"
            said = f"the database's is {abs(facts.clock):.1f} s {how} this machine's: keep both with NTP"
            return self._found("clock", "warning", said)
        return self._found("clock", "ok", f"{facts.clock * 1000:+.0f} ms, give or take {facts.trip * 1000:.0f}")

    def _pool(self, what: str, share: Share, database_url: str, most: int) -> Finding:
        if share.pooled:
            said = f"behind a pooler: its max_client_conn has to be {share.connections} or more, for this service alone"
            return self._found(what, "ok", said)
        url = make_url(database_url)
        where = f"{url.host or url.query.get('host', 'localhost')}:{url.port or 5432}"
        self.demands.append(Demand(self._service.name, where, share.connections, most))
        misfit = share.misfit(most)
        return self._found(what, "error" if misfit else "ok", misfit or f"{share.connections} of {most} connections")

    async def _migrations(self, database: Database, settings: ServiceSettings) -> Finding:
        stands = await standing(database, self._service.declared.migrations)
        missing, newer = stands.pending, stands.said(self._service.name)
        if newer is not None:
            return self._found("migrations", "error" if stands.broken else "warning", newer)
        if missing and not settings.migrate_on_start:
            name = self._service.name
            said = f"{len(missing)} are missing (the next: {missing[0]}); run microkit migrate {name}"
            return self._found("migrations", "error", said)
        return self._found("migrations", "ok", f"{len(missing)} to come at the start" if missing else "none missing")

    @asynccontextmanager
    async def _opened(self, url: str, settings: ServiceSettings) -> AsyncIterator[Database]:
        database = Database(
            url,
            telemetry=Telemetry("doctor", exporter="none", log_level="CRITICAL"),
            pool_size=1,
            max_overflow=1,
            tables=self._service.declared.tables,
            options=pool_options(settings),
        )
        try:
            await database.start()
            yield database
        finally:
            await database.close()


def _file_of(url: str) -> Path | None:
    """The file of an SQLite URL; ``None`` where there is none, or nobody can read the URL."""
    try:
        parsed: URL = make_url(url)
    except (ArgumentError, ValueError):
        return None
    if not parsed.drivername.startswith("sqlite") or parsed.database in (None, "", ":memory:"):
        return None
    return Path(str(parsed.database))


async def _nothing(*_: object) -> None: ...
