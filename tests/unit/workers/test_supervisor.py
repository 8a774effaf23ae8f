"""What several workers cannot share is refused; what they share is known to a registry once."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import MetaData

from microkit import ConfigurationError, Service
from microkit.discovery.memory import MemoryRegistry
from microkit.discovery.port import Endpoint
from microkit.workers.known import Known
from microkit.workers.supervisor import Supervisor

pytestmark = pytest.mark.anyio

REDIS = "redis://localhost:6379/0"


def supervised(service: Service, **settings: object) -> Supervisor:
    return Supervisor(service.declared, service.settings({"workers": 3, **settings}), ["false"])


def test_a_bus_in_memory_is_refused_where_there_are_events() -> None:
    with pytest.raises(ConfigurationError) as caught:
        supervised(Service("till", tables=MetaData()))
    assert str(caught.value) == (
        "TILL_BUS_URL is memory://, and each of the 3 workers would have a bus of its own, which the others never "
        "hear: name a broker, such as redis://localhost:6379/0, or set TILL_WORKERS=1"
    )
    supervised(Service("till", tables=MetaData()), bus_url=REDIS)
    supervised(Service("door"))  # it has no events


def test_a_database_in_memory_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="TILL_DATABASE_URL is a database in memory"):
        supervised(Service("till", tables=MetaData()), bus_url=REDIS, database_url="sqlite+aiosqlite:///:memory:")


async def test_a_worker_that_does_not_start_ends_the_start_and_gives_the_port_back() -> None:
    for _ in range(2):
        supervisor = supervised(Service("door"), port=0)
        with pytest.raises(ConfigurationError, match="door does not start: worker 1 ended with code 1"):
            await supervisor.start()


async def test_the_registry_knows_one_endpoint_while_a_worker_is_ready() -> None:
    registry = MemoryRegistry()
    slots: list[Any] = [SimpleNamespace(ready=False), SimpleNamespace(ready=False)]
    endpoint = Endpoint("http://127.0.0.1:3003")
    known = Known(registry, "till", endpoint, slots)
    changes = registry.watch("till")

    async def until(number: int) -> None:
        async with asyncio.timeout(30):
            while len(await anext(changes)) != number:
                pass

    async with AsyncExitStack() as owned:
        known.keep()
        owned.push_async_callback(known.forget)
        await until(0)
        slots[1].ready = True
        await until(1)
        slots[0].ready, slots[1].ready = True, False
        await asyncio.sleep(0.5)
        assert list(await registry.resolve("till")) == [endpoint]
        slots[0].ready = False
        await until(0)
        slots[0].ready = True
        await until(1)
    await until(0)
