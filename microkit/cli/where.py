"""Where a command looks: at the bus or database it is given, at a running ``microkit up``, or where settings say.

The settings' word counts: where a service's own name a broker, that is asked, whatever runs on this machine.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from microkit.bus.connect import connect, started
from microkit.bus.port import Bus
from microkit.choreography import Process
from microkit.cli.folder import DEFAULT_FOLDER, find_note
from microkit.cli.load import find_service, load_system
from microkit.cli.remote import remote_desk
from microkit.console.desk import Desk, LocalDesk, Post
from microkit.db import Database
from microkit.db.migration import pending
from microkit.db.options import PoolOptions
from microkit.declared import Declared, topics_of
from microkit.errors import ConfigurationError
from microkit.redaction import redact_text
from microkit.saga import Saga
from microkit.service import Service
from microkit.settings import ServiceSettings
from microkit.telemetry import Telemetry

About = Literal["letters", "bus", "outbox", "sagas"]

_IN_MEMORY: Final = "memory:"


@dataclass(frozen=True, slots=True)
class Store:
    """The database of a service that has sagas or follows processes, with the definitions that are known of them. The
    service is ``""`` where only a database was named."""

    service: str
    database: Database
    sagas: Sequence[Saga[Any]]
    processes: Sequence[Process]


@dataclass(frozen=True, slots=True)
class Where:
    """What a command was told about where to look."""

    service: str | None = None
    system: str | None = None
    bus: str | None = None
    database: str | None = None
    folder: Path = DEFAULT_FOLDER

    @asynccontextmanager
    async def desk(self, about: About) -> AsyncIterator[Desk]:
        """The desk that can answer.

        Raises:
            ConfigurationError: there is none; the sentence says what to do.
        """
        async with AsyncExitStack() as owned:
            yield await _Opening(self, about, owned).desk()

    @asynccontextmanager
    async def stores(self) -> AsyncIterator[list[Store]]:
        """The databases with the sagas that are meant: of the service, or of all that have any.

        Raises:
            ConfigurationError: there is none; the sentence says what to do.
        """
        async with AsyncExitStack() as owned:
            yield await _Opening(self, "sagas", owned).stores()

    def sagas(self) -> list[tuple[str, Saga[Any]]]:
        """The definitions of the service, or of all, each with its service's name.

        Raises:
            ConfigurationError: there is no such system or service.
        """
        return [(service.name, saga) for service in self.services() for saga in service.declared.sagas]

    def processes(self) -> list[tuple[str, Process]]:
        """The processes that the service follows, or all do, each with its service's name.

        Raises:
            ConfigurationError: there is no such system or service.
        """
        return [(service.name, process) for service in self.services() for process in service.declared.processes]

    def services(self) -> list[Service]:
        """The service that is meant, or all of the system."""
        _, system = load_system(self.system)
        return [find_service(system, self.service)] if self.service else list(system.services)


class _Opening:
    def __init__(self, where: Where, about: About, owned: AsyncExitStack) -> None:
        self._where = where
        self._about = about
        self._owned = owned
        self._buses: dict[str, Bus] = {}

    async def desk(self) -> Desk:
        where = self._where
        if where.bus is not None and not where.bus.startswith(_IN_MEMORY):
            self._refuse("outbox", "--bus", "--database")
            return LocalDesk([Post("", await self._bus(where.bus))])
        if where.database is not None:
            self._refuse("bus", "--database", "--bus")
            return LocalDesk([Post(where.service or "", None, await self._database(where.database, None))])
        return await self._by_settings()

    async def stores(self) -> list[Store]:
        where = self._where
        if where.database is not None:
            database = await self._database(where.database, None)
            sagas, processes = self._known()
            return [Store(where.service or "", database, sagas, processes)]
        declared = [each for each in where.services() if each.declared.sagas or each.declared.processes]
        if not declared:
            raise ConfigurationError(f"{where.service or 'The system'} has no sagas and follows no processes")
        settings = {each.name: each.settings() for each in declared}
        urls = {name: self._database_url(name, given) for name, given in settings.items()}
        return [
            Store(
                each.name,
                await self._database(urls[each.name], each.declared, pooled=settings[each.name].database_pgbouncer),
                each.declared.sagas,
                each.declared.processes,
            )
            for each in declared
        ]

    def _known(self) -> tuple[list[Saga[Any]], list[Process]]:
        """The definitions beside a database that was named. To look into it none are needed."""
        try:
            sagas, processes = self._where.sagas(), self._where.processes()
        except ConfigurationError:
            if self._where.service is not None or self._where.system is not None:
                raise
            return [], []
        return [saga for _, saga in sagas], [process for _, process in processes]

    def _refuse(self, about: About, given: str, wanted: str) -> None:
        if self._about == about:
            raise ConfigurationError(f"{given} does not help here: name where to look with {wanted} or --service")

    async def _by_settings(self) -> Desk:
        where = self._where
        _, system = load_system(where.system)
        services = where.services()
        storing = [service for service in services if service.declared.stores]
        if not storing:
            raise ConfigurationError(
                f"{where.service or system.name} has no events: it has neither database nor handlers"
            )
        settings = {service.name: service.settings() for service in storing}
        abroad = [service for service in storing if not _bus_url(settings[service.name]).startswith(_IN_MEMORY)]
        if not abroad:
            if (note := find_note(where.folder)) is not None:
                return await self._owned.enter_async_context(remote_desk(note.console))
            if self._about == "bus":
                raise ConfigurationError(
                    f"The bus memory:// lives in a running `microkit up`, and none runs in the folder {where.folder}: "
                    "start one in another terminal, or name a broker with --bus"
                )
        asked = abroad if abroad and self._about != "outbox" else storing
        return LocalDesk([await self._post(service.declared, settings[service.name]) for service in asked])

    async def _post(self, declared: Declared, settings: ServiceSettings) -> Post:
        groups = {group: topics_of(listeners) for group, listeners in declared.groups().items()}
        post = Post(declared.name, groups=groups)
        url = _bus_url(settings)
        if self._about != "outbox" and not url.startswith(_IN_MEMORY):
            return replace(post, bus=await self._bus(url))
        url, pooled = self._database_url(declared.name, settings), settings.database_pgbouncer
        return replace(post, database=await self._database(url, declared, pooled=pooled))

    def _database_url(self, service: str, settings: ServiceSettings) -> str:
        if "database_url" in settings.origin.places:
            return settings.database_url.get_secret_value()
        note = find_note(self._where.folder)
        if note is not None and service in note.databases:
            return note.databases[service]
        return f"sqlite+aiosqlite:///{self._where.folder / service}.db"  # where `up` keeps it

    async def _bus(self, url: str) -> Bus:
        found = self._buses.get(url)
        if found is None:
            found = self._buses[url] = connect(url)
            self._owned.push_async_callback(found.close)
            await started(found, url)
        return found

    async def _database(self, url: str, declared: Declared | None, *, pooled: bool = False) -> Database:
        _check_file(url)
        name = declared.name if declared is not None else "microkit"
        telemetry = Telemetry(name, exporter="none")
        self._owned.push_async_callback(telemetry.close)
        options = PoolOptions(pgbouncer=pooled)
        database = Database(url, telemetry=telemetry, pool_size=2, max_overflow=0, options=options)
        self._owned.push_async_callback(database.close)
        await database.start()
        if await pending(database, None):
            migrate = f"`microkit migrate {name}`" if declared is not None else "`microkit migrate SERVICE`"
            what = "sagas" if self._about == "sagas" else "outbox"
            raise ConfigurationError(
                f"The database {redact_text(url)} has no {what} of this version: run {migrate}, or see that it is the "
                "right one"
            )
        return database


def _bus_url(settings: ServiceSettings) -> str:
    return settings.bus_url.get_secret_value()


def _check_file(url: str) -> None:
    """A file that is not there would be made, and found to be empty."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise ConfigurationError(
            f"{redact_text(url)!r} is no database; write postgresql+asyncpg://user:...@db/billing or "
            "sqlite+aiosqlite:///.microkit/billing.db"
        ) from None
    if parsed.get_backend_name() == "sqlite" and not Path(parsed.database or "").is_file():
        raise ConfigurationError(
            f"There is no database {parsed.database!r}, and no `microkit up` runs beside it: start one, or say where "
            "to look with --folder, --database or --bus"
        )


def quiet() -> None:
    """What the adapters log is for services; here it would stand between the lines of a table."""
    logging.getLogger("microkit").setLevel(logging.ERROR)
