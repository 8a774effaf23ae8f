"""Resources: opened with the instance, bound by type, closed with it whatever the others do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from microkit import ANYONE, ConfigurationError, DefinitionError, Service, ServiceSettings
from tests.unit.service.notes import ask, notes_service

pytestmark = pytest.mark.anyio


class Thing:
    def __init__(self, name: str) -> None:
        self.name = name
        self.open = True


async def test_a_resource_lives_as_long_as_the_instance_and_is_bound_by_its_type() -> None:
    service = Service("things")
    made: list[Thing] = []

    @service.resource
    async def thing(settings: ServiceSettings) -> AsyncIterator[Thing]:
        made.append(Thing(settings.log_level))
        yield made[-1]
        made[-1].open = False

    @service.get("/thing", allow=ANYONE)
    async def read(thing: Thing) -> str:
        return thing.name

    async with service.instance({"port": 0}) as instance:
        assert await ask(f"{instance.url}/thing") == (200, "INFO")
        assert made[0].open

    assert not made[0].open


async def test_a_resource_that_hangs_or_fails_while_it_closes_keeps_no_other_open() -> None:
    service = Service("things")
    closed: list[str] = []

    @service.resource
    async def first(settings: ServiceSettings) -> AsyncIterator[Thing]:
        yield Thing("first")
        closed.append("first")

    @service.resource
    async def hanging(thing: Thing) -> AsyncIterator[asyncio.Lock]:
        yield asyncio.Lock()
        await asyncio.sleep(3600)

    @service.resource
    async def failing(thing: Thing) -> AsyncIterator[asyncio.Event]:
        yield asyncio.Event()
        raise RuntimeError("it broke")

    async with service.instance({"port": 0, "shutdown_timeout": "200ms"}):
        pass

    assert closed == ["first"]


async def test_a_resource_that_yields_nothing_and_two_of_one_type_are_refused_by_name() -> None:
    empty, twice = Service("empty"), Service("twice")

    @empty.resource
    async def nothing(settings: ServiceSettings) -> AsyncIterator[Thing]:
        for _ in ():
            yield Thing("never")

    for _ in range(2):

        @twice.resource
        async def thing(settings: ServiceSettings) -> AsyncIterator[Thing]:
            yield Thing("one")

    with pytest.raises(DefinitionError, match=r"nothing ended without yielding"):
        await empty.instance({"port": 0}).start()
    with pytest.raises(DefinitionError, match="two resources of the type Thing"):
        await twice.instance({"port": 0}).start()


async def test_a_resource_that_fails_stops_the_start_and_closes_what_was_open(settings: dict[str, object]) -> None:
    service = notes_service()

    @service.resource
    async def thing() -> AsyncIterator[Thing]:
        raise ConfigurationError("THING_KEY is missing")
        yield Thing("never")

    with pytest.raises(ConfigurationError, match="THING_KEY"):
        await service.instance(settings).start()
