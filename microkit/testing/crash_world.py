"""What is run, killed and started again: all services of a system, in one process, on databases that stay."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, TypeVar
from uuid import uuid4

import sqlalchemy as sa

from microkit.bus.port import Bus, ShowsLag
from microkit.db import Database
from microkit.declared import topics_of
from microkit.development import IN_MEMORY, Surroundings, chosen_settings
from microkit.outbox.tables import outbox
from microkit.saga.tables import saga, saga_wait
from microkit.servers.ports import free_ports
from microkit.service import Service
from microkit.settings import ServiceSettings
from microkit.system import RunningSystem, System
from microkit.testing.crash_points import Watch, WatchedBus
from microkit.testing.postgres import Cluster
from microkit.testing.system import SystemUnderTest

T = TypeVar("T")

_LOOK: Final = 0.5
_SLOWEST_LOOK: Final = 10.0
_SETTLED: Final = 0.1
_QUIET: Final[Mapping[str, object]] = {"access_log": False, "trace_sampling": 0.0}


class CrashScenario(Generic[T]):
    """What an exploration plays. Write a subclass; it is made anew for each run.

    ``system`` is a system, or a service that stands alone; ``settings``, by service, win over the environment.
    """

    system: System | Service
    settings: Mapping[str, Mapping[str, object]] = {}

    async def arrange(self, world: SystemUnderTest) -> T:
        """Brings about what is there before. It is done once, and nothing is killed; each run begins with the databases
        as it left them, and with what it returned."""
        raise NotImplementedError

    async def act(self, world: SystemUnderTest, arranged: T) -> None:
        """What is asked from outside. Where the kill came before its end it is done again, as a client does that got no
        answer: with the same idempotency keys."""
        raise NotImplementedError

    async def invariant(self, world: SystemUnderTest, arranged: T) -> None:
        """What must be true when all has come to rest, wherever it was killed: ``assert`` it."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class World:
    """Where a system is run: with these settings, the same in each of its lives."""

    system: System
    settings: Mapping[str, ServiceSettings]
    folder: Path

    @asynccontextmanager
    async def alive(self, bus: Bus) -> AsyncIterator[SystemUnderTest]:
        """The services run, in this event loop, for as long as the block does."""
        running = RunningSystem(self.system.name, self.folder, bus=bus)
        for service in self.system.services:
            for group, listeners in service.declared.groups().items():
                bus.declare(group, topics_of(listeners))
            running.instances[service.name] = service.instance(
                self.settings[service.name], bus=bus, registry=running.registry, ring=running.ring
            )
        await bus.start()
        try:
            await asyncio.gather(*(instance.start() for instance in running.instances.values()))
            yield SystemUnderTest(running, self.system.issuer)
        finally:
            await asyncio.gather(*(instance.pause() for instance in running.instances.values()))
            await asyncio.gather(*(instance.stop() for instance in running.instances.values()))


class Place:
    """Where all runs take place, one after the other: a folder with SQLite files, or databases on ``postgres``."""

    def __init__(self, folder: Path, postgres: Cluster | None) -> None:
        self.folder = folder / "now"
        self.given: dict[str, dict[str, object]] = {}
        """What is chosen for the services: their ports, and their databases where these are no files."""
        self._arranged = folder / "arranged"
        self._postgres = postgres
        self._tag = f"crash_{uuid4().hex[:8]}"
        self._settings: dict[str, ServiceSettings] = {}
        self._databases: list[str] = []

    def world(self, what: System | Service, settings: Mapping[str, Mapping[str, object]]) -> World:
        """The system in this place, whose databases are as they were left. Its settings are read once, for all runs."""
        system = system_of(what)
        if not self._settings:
            self.given = self._given(system)
            self._settings = settled(system, self.folder, self.given, settings)
        return World(system, self._settings, self.folder)

    def _given(self, system: System) -> dict[str, dict[str, object]]:
        given: dict[str, dict[str, object]] = {}
        for service, port in zip(system.services, free_ports(len(system.services)), strict=True):
            given[service.name] = {"port": port}
            if self._postgres is not None and service.declared.stores:
                given[service.name]["database_url"] = self._postgres.url(self._made(service.name))
        return given

    def _made(self, service: str) -> str:
        name = f"{self._tag}_{service}"
        self._psql(f'CREATE DATABASE "{name}" TEMPLATE template0')
        self._databases.append(name)
        return name

    def keep(self) -> None:
        """As it is now, all runs begin."""
        self.folder.rename(self._arranged)
        for name in self._databases:
            self._psql(f'ALTER DATABASE "{name}" RENAME TO "{name}_arranged"')

    def renew(self) -> None:
        """Makes it what it was when it was kept."""
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self._arranged, self.folder)
        for name in self._databases:
            self._psql(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
            self._psql(f'CREATE DATABASE "{name}" TEMPLATE "{name}_arranged"')

    def clear(self) -> None:
        for name in self._databases:
            for each in (name, f"{name}_arranged"):
                self._psql(f'DROP DATABASE IF EXISTS "{each}" WITH (FORCE)')

    def _psql(self, command: str) -> None:
        if self._postgres is not None:
            self._postgres.psql(command)


def system_of(what: System | Service) -> System:
    return what if isinstance(what, System) else System(what.name, [what])


def settled(
    system: System,
    folder: Path,
    given: Mapping[str, Mapping[str, object]],
    settings: Mapping[str, Mapping[str, object]],
) -> dict[str, ServiceSettings]:
    """The settings of all services, of which ``given`` and a scenario's ``settings`` win over the environment."""
    all_given = {
        service.name: {**_QUIET, **given.get(service.name, {}), **settings.get(service.name, {})}
        for service in system.services
    }
    return chosen_settings(system.name, system.services, system.issuer, Surroundings(folder, IN_MEMORY), all_given)


async def rest(world: SystemUnderTest, bus: Bus, *, within: float) -> None:
    """Waits until nothing is left to do: no saga goes on (one may wait for an event from outside), and no event waits
    in an outbox or on the bus.

    Raises:
        AssertionError: that takes longer than ``within`` (virtual) seconds; the message says what is left.
    """
    look = _LOOK  # in virtual time this is not waited for, but for all that can move
    loop = asyncio.get_running_loop()
    until = loop.time() + within
    quiet = 0
    while True:
        left = await _left(world, bus)
        quiet = 0 if left else quiet + 1
        if quiet > 1:  # what has left one place may not have come to the next
            return
        if left and loop.time() > until:
            raise AssertionError(f"it does not come to rest within {within:g} s: {'; '.join(left)}")
        await asyncio.sleep(look)
        look = min(_SLOWEST_LOOK, look * 1.5)


async def _left(world: SystemUnderTest, bus: Bus) -> list[str]:
    left: list[str] = []
    for name, instance in world.running.instances.items():
        database = instance.parts.database
        if database is not None:
            left += [f"{name}: {what}" for what in await _left_in(database)]
        if isinstance(bus, ShowsLag):
            for group, listeners in instance.declared.groups().items():
                lags = await bus.lag(group, topics_of(listeners))
                left += [f"{lag.waiting} events wait for {group}" for lag in lags if lag.waiting]
    return left


_GO_ON: Final = sa.select(saga.c.name, saga.c.id, saga.c.step).where(
    saga.c.next_at.is_not(None),
    sa.or_(
        saga.c.lease_owner.is_not(None),
        ~sa.exists().where(
            saga_wait.c.saga_id == saga.c.id, saga_wait.c.status == "waiting", saga_wait.c.due <= saga.c.next_at
        ),
    ),
)
"""Sagas with something to do but wait for an event from outside."""

_EVENTS: Final = sa.select(sa.func.count()).select_from(outbox).where(outbox.c.state < 2)


async def _left_in(database: Database) -> list[str]:
    async with database.transaction(read_only=True) as tx:
        sagas = (await tx.execute(_GO_ON)).all()
        events = await tx.scalar(_EVENTS)
    left = [f"saga {name} {saga_id} is at {step}" for name, saga_id, step in sagas]
    return [*left, f"{events} events wait in the outbox"] if events else left


@dataclass(frozen=True, slots=True)
class Played(Generic[T]):
    """A scenario in its place, with what was arranged."""

    scenario: CrashScenario[T]
    arranged: T
    world: World
    within: float

    async def live(self, watch: Watch, bus: WatchedBus, acted: Callable[[], None] | None) -> None:
        """One life of the system: what is asked of it, unless ``acted`` is ``None``, rest, and the invariant."""
        async with self.world.alive(bus) as running:
            await asyncio.sleep(_SETTLED)  # until all has been done that a start does by itself
            watch.see(running.running.instances)
            if acted is not None:
                await self.scenario.act(running, self.arranged)
                acted()
            await rest(running, bus, within=self.within)
            watch.on = False
            await self.scenario.invariant(running, self.arranged)
