"""A system: several services that belong together, and how they run in one process.

In one process they share a bus, a registry of instances and a ring of recent traces; each keeps its own port,
database file, metrics and settings. What a service's own settings say (``BILLING_DATABASE_URL``) wins over what the
system would choose.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from microkit.bus.connect import connect
from microkit.bus.memory import MemoryBus
from microkit.bus.port import Bus
from microkit.db import Database
from microkit.db.server import DatabaseServer
from microkit.declared import topics_of
from microkit.development import IN_MEMORY, Surroundings, chosen_settings, own_databases
from microkit.discovery.memory import MemoryRegistry
from microkit.errors import ConfigurationError, DefinitionError, MicrokitError
from microkit.instance import Instance
from microkit.redaction import redact_text
from microkit.service import Service
from microkit.settings import ServiceSettings
from microkit.telemetry import TraceRing

Watch = Callable[[str, str], None]
"""Told a service's name and its new state: ``starting``, ``ready``, ``stopping``, ``stopped`` or ``failed``."""


class Seeded(Protocol):
    """A running system as demo data goes into it: in this process or in many."""

    @property
    def urls(self) -> Mapping[str, str]:
        """Where each service listens."""
        ...

    @property
    def settings(self) -> Mapping[str, ServiceSettings]: ...
    @property
    def databases(self) -> Mapping[str, Database]:
        """By service; those that have one."""
        ...


@dataclass(frozen=True, slots=True)
class System:
    """Services that are started together.

    ``issuer`` names the service that publishes the keys of users' access tokens at ``/.well-known/jwks.json``;
    ``seed`` fills a running system with demo data and returns the credentials it made, by name; ``story`` is what
    ``microkit demo`` tells, ``drill`` makes the :class:`~microkit.drill.Load` that ``microkit drill`` sends.
    """

    name: str
    services: Sequence[Service]
    issuer: str | None = None
    seed: Callable[[Seeded], Awaitable[Mapping[str, str]]] | None = None
    story: Callable[[Any], Awaitable[None]] | None = None
    drill: Callable[[], Any] | None = None

    def __post_init__(self) -> None:
        for service in self.services:
            if not isinstance(service, Service):
                raise DefinitionError(
                    f"{self.name}: a system is made of services, not {service!r:.100}: "
                    f'System("{self.name}", services=[billing, payment])'
                )
        names = [service.name for service in self.services]
        if len(names) != len(set(names)):
            raise DefinitionError(f"{self.name}: two of its services have the same name ({', '.join(names)})")
        if self.issuer is not None and self.issuer not in names:
            raise DefinitionError(f"{self.name}: the issuer {self.issuer!r} is none of its services")

    @asynccontextmanager
    async def running(
        self,
        folder: Path,
        *,
        ports: Mapping[str, int] | None = None,
        settings: Mapping[str, Mapping[str, object]] | None = None,
        bus: str = IN_MEMORY,
        databases: str | None = None,
        scale: Mapping[str, int] | None = None,
        admin: bool = False,
        watch: Watch = lambda _service, _state: None,
    ) -> AsyncIterator[RunningSystem]:
        """Starts every service in this process; stops them when the block ends.

        ``folder`` keeps the database files and keys, so that a second start finds what the first one left. ``ports``
        and ``settings``, by service, win over everything. ``bus`` is the URL of the bus that they share. ``databases``
        is the URL of a PostgreSQL server, on which each service gets a database, made when it is missing, in place of a
        file; a service whose settings name a database keeps to it. ``scale`` says how many instances of a service there
        are (1): they share its database, each has a port of its own, and the second is called ``billing-2``. With
        ``admin`` each has admin endpoints, where its settings do not say otherwise on a free port.

        Raises:
            ConfigurationError: ``scale`` names no service of the system, the folder cannot be written, a port is taken,
                settings are wrong (the message lists them all), the bus or the server cannot be reached. Services that
                had been started are stopped again.
        """
        names = instance_names(self, scale or {})
        given = {service.name: dict((settings or {}).get(service.name, {})) for service in self.services}
        for name, port in (ports or {}).items():
            given[name]["port"] = port
        server = DatabaseServer(databases) if databases is not None else None
        chosen = chosen_settings(self.name, self.services, self.issuer, Surroundings(folder, bus, server, admin), given)
        if server is not None:
            await server.make(own_databases(server, self.name, self.services, chosen))
        system = RunningSystem(self.name, folder, bus=connect(bus), bus_url=redact_text(bus))
        for service in self.services:
            # All groups are known before anything is published: the first relay to start would otherwise find nobody
            # listening, and take what it sends for delivered.
            for group, listeners in service.declared.groups().items():
                system.bus.declare(group, topics_of(listeners))
            first, *others = names[service.name]
            for name in (first, *others):
                own = chosen[service.name] if name == first else another(chosen[service.name])
                system.instances[name] = service.instance(
                    own, bus=system.bus, registry=system.registry, ring=system.ring
                )
        try:
            await _reach(system)
            # The first of each service brings its database up to date, the others find it so.
            await _start({name: system.instances[name] for name, *_ in names.values()}, watch)
            await _start({name: system.instances[name] for _, *others in names.values() for name in others}, watch)
            yield system
        finally:
            await _stop(system.instances, watch)
            await system.bus.close()


@dataclass(slots=True)
class RunningSystem:
    """The instances of a system in this process, by service name (the second of a service is ``billing-2``), and what
    they share. ``bus_url`` is without its password."""

    name: str
    folder: Path
    instances: dict[str, Instance] = field(default_factory=dict)
    bus: Bus = field(default_factory=MemoryBus)
    bus_url: str = IN_MEMORY
    registry: MemoryRegistry = field(default_factory=MemoryRegistry)
    ring: TraceRing = field(default_factory=TraceRing)

    @property
    def urls(self) -> dict[str, str]:
        """Where each instance listens that runs."""
        return {name: instance.url for name, instance in self.instances.items() if instance.running}

    @property
    def settings(self) -> dict[str, ServiceSettings]:
        """The settings of each service."""
        return {instance.name: instance.settings for instance in reversed(self.instances.values())}

    @property
    def databases(self) -> dict[str, Database]:
        """The database of each service that has one; its instances share it."""
        running = [instance for instance in reversed(self.instances.values()) if instance.running]
        found = {instance.name: instance.parts.database for instance in running}
        return {name: database for name, database in found.items() if database is not None}

    async def failure(self) -> MicrokitError:
        """Waits until an instance can no longer do its work, and says which and why."""
        waiting = {asyncio.create_task(instance.failed.wait()): name for name, instance in self.instances.items()}
        try:
            ended, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
        name = waiting[ended.pop()]
        return MicrokitError(f"{name} cannot go on: {self.instances[name].failure}")


def instance_names(system: System, scale: Mapping[str, int]) -> dict[str, list[str]]:
    """The names of each service's instances: ``billing``, ``billing-2`` …

    Raises:
        ConfigurationError: ``scale`` names none of the services, less than one instance, or a name that a service has.
    """
    services = [service.name for service in system.services]
    found = {service: [service] for service in services}
    for service, number in scale.items():
        if service not in found:
            raise ConfigurationError(
                f"{service!r} cannot be scaled: {system.name} has no such service, only {', '.join(services)}"
            )
        if number < 1:
            raise ConfigurationError(f"{service} needs one instance at least, not {number}")
        found[service] += [f"{service}-{each}" for each in range(2, number + 1)]
        if taken := set(found[service][1:]) & set(services):
            raise ConfigurationError(f"A second {service} would be called as the service {taken.pop()}: scale it less")
    return found


def another(settings: ServiceSettings) -> ServiceSettings:
    """The settings of one more instance of a service in this process: what only one can have is its own."""
    return settings.model_copy(update={"port": 0, "instance_id": None, "advertised_url": None})


async def _reach(system: RunningSystem) -> None:
    try:
        await system.bus.start()
    except ConnectionError as error:
        raise ConfigurationError(
            f"The bus {system.bus_url} cannot be reached: {redact_text(str(error))}; see that it runs, and that its "
            "address and password are right"
        ) from error


async def _start(instances: Mapping[str, Instance], watch: Watch) -> None:
    async def start(name: str, instance: Instance) -> None:
        watch(name, "starting")
        try:
            await instance.start()
        except BaseException:
            watch(name, "failed")
            raise
        watch(name, "ready")

    ended = await asyncio.gather(*(start(*item) for item in instances.items()), return_exceptions=True)
    failed = {name: error for name, error in zip(instances, ended, strict=True) if isinstance(error, BaseException)}
    for error in failed.values():
        if not isinstance(error, (MicrokitError, OSError)):
            raise error
    if failed:
        told = [f"{name} does not start: {error}" for name, error in failed.items()]
        raise ConfigurationError(_listed(f"{len(told)} services do not start", told)) from next(iter(failed.values()))


def _listed(heading: str, told: Sequence[str]) -> str:
    return told[0] if len(told) == 1 else f"{heading}:" + "".join(f"\n  {sentence}" for sentence in told)


async def _stop(instances: Mapping[str, Instance], watch: Watch) -> None:
    async def stop(name: str, instance: Instance) -> None:
        await instance.stop()
        watch(name, "stopped")

    # Nobody takes up new work while all still answer: a saga's step under way may need any of its neighbours.
    for name in instances:
        watch(name, "stopping")
    await asyncio.gather(*(instance.pause() for instance in instances.values()))
    await asyncio.gather(*(stop(*item) for item in instances.items()))
