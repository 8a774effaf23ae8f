"""What is run, killed and started again: all services of a system, in one process, on databases that stay."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Generic, TypeVar

import sqlalchemy as sa

from microkit.bus.port import Bus, ShowsLag
from microkit.db import Database
from microkit.declared import topics_of
from microkit.development import IN_MEMORY, Surroundings, chosen_settings
from microkit.outbox.tables import outbox
from microkit.saga.tables import saga
from microkit.servers.ports import free_ports
from microkit.service import Service
from microkit.system import RunningSystem, System
from microkit.testing.postgres import Cluster
from microkit.testing.system import SystemUnderTest

T = TypeVar("T")

_ARRANGED: Final = "arranged"
_LOOK: Final = 0.02
_SLOWEST_LOOK: Final = 1.0


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
    """One run's place: its folder, its databases and the broker that outlives the process."""

    system: System
    folder: Path
    databases: Mapping[str, Mapping[str, object]] = field(default_factory=dict)

    @asynccontextmanager
    async def alive(self, bus: Bus, settings: Mapping[str, Mapping[str, object]]) -> AsyncIterator[SystemUnderTest]:
        """The services run, in this event loop, for as long as the block does."""
        names = [service.name for service in self.system.services]
        given: dict[str, dict[str, object]] = {
            name: {**self.databases.get(name, {}), **settings.get(name, {})} for name in names
        }
        for name, port in zip(names, free_ports(len(names)), strict=True):
            given[name]["port"] = port
        around = Surroundings(self.folder, IN_MEMORY)
        chosen = chosen_settings(self.system.name, self.system.services, self.system.issuer, around, given)
        running = RunningSystem(self.system.name, self.folder, bus=bus)
        for service in self.system.services:
            for group, listeners in service.declared.groups().items():
                bus.declare(group, topics_of(listeners))
            running.instances[service.name] = service.instance(
                chosen[service.name], bus=bus, registry=running.registry, ring=running.ring
            )
        await bus.start()
        try:
            await asyncio.gather(*(instance.start() for instance in running.instances.values()))
            yield SystemUnderTest(running, self.system.issuer)
        finally:
            await asyncio.gather(*(instance.pause() for instance in running.instances.values()))
            await asyncio.gather(*(instance.stop() for instance in running.instances.values()))


class Places:
    """Makes the places of runs, in ``folder``; the databases are files there, or ``postgres`` has them."""

    def __init__(self, folder: Path, postgres: Cluster | None) -> None:
        self._folder = folder
        self._postgres = postgres

    def first(self, what: System | Service) -> World:
        """The empty place, where is arranged what all runs begin with."""
        system = system_of(what)
        (self._folder / _ARRANGED).mkdir()
        for service in _storing(system):
            self._psql(f'CREATE DATABASE "{_database(_ARRANGED, service)}" TEMPLATE template0')
        return self._world(_ARRANGED, system)

    def next(self, run: str, what: System | Service) -> World:
        """A place that is as the first one was left."""
        system = system_of(what)
        shutil.copytree(self._folder / _ARRANGED, self._folder / run)
        for service in _storing(system):
            source, target = _database(_ARRANGED, service), _database(run, service)
            self._psql(f'CREATE DATABASE "{target}" TEMPLATE "{source}"')
        return self._world(run, system)

    def forget(self, world: World) -> None:
        for service in _storing(world.system):
            self._psql(f'DROP DATABASE IF EXISTS "{_database(world.folder.name, service)}" WITH (FORCE)')
        shutil.rmtree(world.folder, ignore_errors=True)

    def _world(self, run: str, system: System) -> World:
        urls: dict[str, dict[str, object]] = {}
        if self._postgres is not None:
            urls = {
                service: {"database_url": self._postgres.url(_database(run, service))} for service in _storing(system)
            }
        return World(system, self._folder / run, urls)

    def _psql(self, command: str) -> None:
        if self._postgres is not None:
            self._postgres.psql(command)


def _storing(system: System) -> list[str]:
    return [service.name for service in system.services if service.declared.stores]


def _database(run: str, service: str) -> str:
    return f"{run}_{service}"


def system_of(what: System | Service) -> System:
    return what if isinstance(what, System) else System(what.name, [what])


async def rest(world: SystemUnderTest, bus: Bus, *, within: float) -> None:
    """Waits until nothing is left to do: no saga goes on, no event waits in an outbox or on the bus.

    Raises:
        AssertionError: that takes longer than ``within`` (virtual) seconds; the message says what is left.
    """
    look = _LOOK
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


async def _left_in(database: Database) -> list[str]:
    async with database.transaction(read_only=True) as tx:
        sagas = (
            await tx.execute(sa.select(saga.c.name, saga.c.id, saga.c.step).where(saga.c.next_at.is_not(None)))
        ).all()
        events = await tx.scalar(sa.select(sa.func.count()).select_from(outbox).where(outbox.c.state < 2))
    left = [f"saga {name} {saga_id} is at {step}" for name, saga_id, step in sagas]
    return [*left, f"{events} events wait in the outbox"] if events else left
