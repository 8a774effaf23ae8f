"""Bad instances among good ones: callers do not notice them, and they come back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from microkit.errors import Unavailable
from microkit.resilience.breaker import BreakerOpen
from microkit.web import Server
from tests.contract.client.hosts import Fleet, Make, dead, until

pytestmark = pytest.mark.anyio


async def test_one_instance_that_fails_is_not_noticed_and_is_ejected(fleet: Make) -> None:
    made = await fleet(3)
    made.hosts[0].status = 500
    answered, errors = await made.reads(300)
    assert (answered, errors) == (300, [])
    assert len(made.hosts[0].requests) <= 5 + 8  # in a row, and those under way then
    assert made.upstream.breaker.closed
    assert made.received <= 1.2 * 300


async def ejects_one(made: Fleet) -> None:
    """Many calls at once, so that even the one that is known to fail gets some. It may be back by the time they end."""
    async with asyncio.timeout(60):
        while not made.metric("http_client_ejections_total"):
            assert (await made.reads(150, at_once=150))[0] == 150


async def test_an_instance_that_fails_often_is_ejected(fleet: Make) -> None:
    made = await fleet(3, breaker_failures=100, retry_free=1000)
    made.hosts[0].status = 500
    await ejects_one(made)
    assert made.upstream.balancer.ejected == 1
    seen = len(made.hosts[0].requests)
    assert (await made.reads(150, at_once=150))[0] == 150
    assert len(made.hosts[0].requests) == seen
    assert made.metric("http_client_ejected_instances") == 1
    assert made.metric("http_client_ejections_total") == 1


async def test_a_dead_instance_is_not_noticed_even_by_calls_that_may_not_be_repeated(fleet: Make) -> None:
    made = await fleet(2, retry_unsafe=False)
    made.known.endpoints = (dead(), *made.known.endpoints)
    answers = await asyncio.gather(*(made.echo.write("x") for _ in range(60)))
    assert set(answers) == {"a", "b"}
    assert made.received == 60


async def test_two_dead_instances_of_three_are_not_noticed_and_one_is_ejected(fleet: Make) -> None:
    made = await fleet(1)
    made.known.endpoints = (dead(), dead(), *made.known.endpoints)
    answered, _ = await made.reads(200)
    assert answered == 200
    assert made.upstream.balancer.ejected <= 1
    assert made.upstream.breaker.closed


async def test_of_two_instances_the_dead_one_is_left_to_its_breaker(fleet: Make) -> None:
    made = await fleet(1)
    made.known.endpoints = (dead(), *made.known.endpoints)
    answered, _ = await made.reads(200)
    assert answered == 200
    assert made.upstream.balancer.ejected == 0


async def test_the_one_that_is_back_answers_when_the_other_goes_though_its_breaker_is_still_open(fleet: Make) -> None:
    """What a rolling restart of two does: each is away once, one right after the other."""
    made = await fleet(2, breaker_reset=60, retry_free=100)
    await made.reads(20)
    first, second = made.hosts
    by_url = {instance.url: instance for instance in made.upstream.balancer.instances}
    one = by_url[first.server.url]
    port = first.server.port
    await first.server.stop(1)
    while one.breaker.closed:
        assert await made.reads(20) == (20, [])
        one.start_anew(time.monotonic())  # what made it dear is forgotten with the time
    again = Server(first, port=port)
    await again.start()
    await second.server.stop(1)
    assert not one.breaker.closed
    assert await made.reads(50) == (50, [])
    assert one.breaker.closed
    await again.stop(1)


async def test_to_ask_another_one_after_a_refused_connection_takes_nothing_from_the_budget(fleet: Make) -> None:
    made = await fleet(1, retry_share=0, retry_free=0)
    made.known.endpoints = (dead(), *made.known.endpoints)
    assert await made.reads(50) == (50, [])
    made.hosts[0].status = 503
    answered, errors = await made.reads(1)
    assert (answered, len(errors)) == (0, 1)
    assert made.metric("http_client_retry_budget_exhausted_total") == 1


async def test_one_that_failed_is_left_alone_by_those_who_found_nobody_at_the_others(fleet: Make) -> None:
    made = await fleet(1, breaker_reset=60)
    await made.reads(1)
    made.known.endpoints = (*made.known.endpoints, dead())
    (broken,) = made.upstream.balancer.instances
    broken.breaker.open()
    answered, errors = await made.reads(20, at_once=1)
    assert (answered, made.received) == (0, 1)
    assert {type(error) for error in errors} <= {Unavailable, BreakerOpen}


async def test_an_ejected_instance_comes_back(fleet: Make) -> None:
    made = await fleet(3, ejection_time=0.1, breaker_reset=0.05, retry_free=1000)
    made.hosts[0].status = 500
    await ejects_one(made)
    made.hosts[0].status = 200
    seen = len(made.hosts[0].requests)
    async with asyncio.timeout(60):
        while len(made.hosts[0].requests) < seen + 20:
            assert (await made.reads(20))[0] == 20
    assert made.upstream.balancer.ejected == 0


async def test_an_instance_that_stops_is_not_noticed(fleet: Make) -> None:
    """Drained: answers under way say ``Connection: close``, kept connections end, new ones go elsewhere."""
    made = await fleet(2)
    stop = asyncio.Event()
    errors: list[Exception] = []
    calls = 0

    async def keep_calling(call: Callable[[str], Awaitable[str]]) -> None:
        nonlocal calls
        while not stop.is_set():
            try:
                await call("x")
                calls += 1
            except Exception as error:  # noqa: BLE001  all of them are looked at
                errors.append(error)

    tasks = [asyncio.create_task(keep_calling(call)) for call in (made.echo.read, made.echo.write) for _ in range(4)]
    await until(lambda: calls > 100)
    await made.hosts[0].server.stop(5)
    before = calls
    await until(lambda: calls > before + 200)
    stop.set()
    await asyncio.gather(*tasks)
    assert errors == []
