"""When a breaker opens, what it lets through, and what it does not count: on real servers."""

from __future__ import annotations

import asyncio
import time

import pytest

from microkit.context import WorkContext, working
from microkit.errors import DeadlineExceeded, RemoteProblem
from microkit.resilience.breaker import BreakerOpen, BreakerState
from tests.contract.client.hosts import Make, until

pytestmark = pytest.mark.anyio


async def test_a_service_that_only_fails_is_left_alone(fleet: Make) -> None:
    made = await fleet(3)
    for host in made.hosts:
        host.status = 500
    answered, errors = await made.reads(300)
    assert answered == 0
    assert made.received <= 60  # of 300
    assert sum(isinstance(error, BreakerOpen) for error in errors) >= 240
    assert not made.upstream.callable
    assert made.metric("http_client_breaker_refused_total") >= 240
    assert made.metric("http_client_breaker_state") == BreakerState.OPEN or made.upstream.balancer.open == 3


async def test_half_open_one_call_is_the_probe(fleet: Make) -> None:
    made = await fleet(1, breaker_reset=0.1, attempts=1)
    (host,) = made.hosts
    host.status = 500
    await made.reads(5, at_once=1)  # and not one more: on a busy machine it could come after the pause
    assert len(host.requests) == 5
    host.status, host.gate = 200, asyncio.Event()
    await until(lambda: made.upstream.callable)
    calls = asyncio.create_task(made.reads(30, at_once=30))
    await until(lambda: len(host.requests) == 6)
    await asyncio.sleep(0.05)
    host.gate.set()
    answered, errors = await calls
    assert (answered, len(host.requests)) == (1, 6)
    assert all(isinstance(error, BreakerOpen) for error in errors)
    assert (await made.reads(20))[0] == 20


async def test_a_probe_that_fails_opens_it_again(fleet: Make) -> None:
    made = await fleet(1, breaker_reset=0.1, attempts=1)
    (host,) = made.hosts
    host.status = 500
    await made.reads(5, at_once=1)
    await until(lambda: made.upstream.callable)
    await made.reads(20, at_once=20)
    assert len(host.requests) == 6


async def test_refusals_open_nothing(fleet: Make) -> None:
    made = await fleet(3)
    for host, status in zip(made.hosts, (404, 409, 429), strict=True):
        host.status = status
    answered, errors = await made.reads(100)
    assert answered == 0
    assert all(isinstance(error, RemoteProblem) for error in errors)
    assert made.received == 100
    assert (made.upstream.balancer.open, made.upstream.balancer.ejected) == (0, 0)


async def test_slow_answers_open_nothing(fleet: Make) -> None:
    made = await fleet(2)
    for host in made.hosts:
        host.delay = 0.03
    assert (await made.reads(60, at_once=20))[0] == 60
    assert (made.upstream.balancer.open, made.upstream.balancer.ejected) == (0, 0)
    assert made.upstream.breaker.closed


async def test_cancelled_calls_open_nothing(fleet: Make) -> None:
    made = await fleet(1)
    (host,) = made.hosts
    host.gate = asyncio.Event()
    calls = [asyncio.ensure_future(made.echo.read("x")) for _ in range(20)]
    await until(lambda: len(host.requests) == 20)
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)
    assert all(call.cancelled() for call in calls)
    (instance,) = made.upstream.balancer.instances
    assert (instance.pending, instance.failures, instance.breaker.failures) == (0, 0, 0)
    host.gate.set()
    assert await made.echo.read("x") == "a"


async def test_a_caller_in_a_hurry_does_not_open_it(fleet: Make) -> None:
    made = await fleet(1)
    (host,) = made.hosts
    host.delay = 0.5
    with working(WorkContext(deadline=time.monotonic() + 0.05)):
        _, errors = await made.reads(20, at_once=20)
    assert len(errors) == 20
    assert made.upstream.callable
    (instance,) = made.upstream.balancer.instances
    assert instance.breaker.failures == 0


async def test_no_answer_in_the_operations_own_time_is_a_failure(fleet: Make) -> None:
    made = await fleet(1, timeout=0.05)
    (host,) = made.hosts
    host.delay = 5.0
    _, errors = await made.reads(8, at_once=8)
    assert all(isinstance(error, DeadlineExceeded) for error in errors)
    assert not made.upstream.callable


async def test_a_server_that_sheds_load_is_not_taken_out(fleet: Make) -> None:
    made = await fleet(1, attempts=1)
    (host,) = made.hosts
    host.status, host.headers = 503, {"retry-after": "1"}
    await made.reads(50)
    assert len(host.requests) == 50
    assert made.upstream.callable
