"""A service's settings decide how it calls others, and its health and metrics show how they are."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest

from microkit import ANYONE, ConfigurationError, Contract, Service, get
from microkit.discovery.memory import MemoryRegistry
from microkit.errors import RemoteProblem
from microkit.resilience.breaker import BreakerOpen
from microkit.testing.valkey import valkey

pytestmark = pytest.mark.anyio


class Back(Contract, service="back", allow=ANYONE):
    @get("/work")
    async def work(self) -> str: ...


class Failing(Exception): ...


def failing_back() -> tuple[Service, list[int]]:
    service = Service("back", port=0)
    asked: list[int] = []

    @service.handles(Back.work)
    async def work() -> str:
        asked.append(1)
        raise Failing

    return service, asked


async def text(url: str) -> Any:
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        return await answer.json() if "json" in answer.content_type else await answer.text()


async def test_a_client_is_guarded_as_the_settings_say_and_is_shown() -> None:
    registry = MemoryRegistry()
    back, asked = failing_back()
    front = Service("front", port=0)
    front.client(Back)
    settings = {"clients": {"back": {"attempts": 1, "breaker_failures": 3, "breaker_reset": "1h"}}}
    async with back.instance(registry=registry), front.instance(settings, registry=registry) as instance:
        client = instance.client(Back)
        for _ in range(3):
            with pytest.raises(RemoteProblem):
                await client.work()
        part = (await text(f"{instance.url}/health"))["parts"]["clients"]
        for _ in range(5):
            with pytest.raises(BreakerOpen):
                await client.work()
        assert len(asked) == 3
        assert "the breaker is open: back" in str(part)
        metrics = await text(f"{instance.url}/metrics")
        assert 'http_client_open_instances{server_address="back"} 1.0' in metrics
        assert 'http_client_breaker_refused_total{server_address="back"} 5.0' in metrics


async def test_an_operation_in_the_settings_that_is_none_keeps_it_from_starting() -> None:
    front = Service("front", port=0)
    front.client(Back)
    settings = {"clients": {"back": {"operations": {"wrok": {"timeout": 1}}}}}
    with pytest.raises(ConfigurationError, match="back has no operation wrok; there are work"):
        await front.instance(settings, registry=MemoryRegistry()).start()


async def test_what_one_instance_finds_out_its_replica_knows() -> None:
    registry = MemoryRegistry()
    back, asked = failing_back()
    front = Service("front", port=0)
    front.client(Back)
    with valkey() as store:
        settings = {"clients": {"back": {"attempts": 1}}, "breaker_state_url": store.url}
        async with (
            back.instance(registry=registry),
            front.instance(settings, registry=registry) as one,
            front.instance(settings, registry=registry) as two,
        ):
            with pytest.raises(RemoteProblem):
                await two.client(Back).work()  # so that it knows of the instance
            for _ in range(5):
                with pytest.raises(RemoteProblem):
                    await one.client(Back).work()
            async with asyncio.timeout(20):
                while all(breaker.closed for breaker in two.parts.upstreams["back"].breakers()):
                    await asyncio.sleep(0.02)
            with pytest.raises(BreakerOpen):
                await two.client(Back).work()
            assert len(asked) == 6
