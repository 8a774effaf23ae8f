"""The bulkhead, hedging, collapsing: what calls that are under way at the same time do to each other."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from microkit.context import WorkContext, working
from microkit.contract import post
from microkit.errors import DeadlineExceeded, DefinitionError
from microkit.resilience.bulkhead import BulkheadFull
from tests.contract.client.hosts import Make, until

pytestmark = pytest.mark.anyio


async def test_no_more_calls_at_once_than_allowed(fleet: Make) -> None:
    made = await fleet(1, concurrency=2, queue_timeout=0.05)
    (host,) = made.hosts
    host.gate = asyncio.Event()
    calls = [asyncio.ensure_future(made.echo.read("x")) for _ in range(6)]
    await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    await until(lambda: sum(call.done() for call in calls) == 4)
    assert all(isinstance(call.exception(), BulkheadFull) for call in calls if call.done())
    await until(lambda: len(host.requests) == 2)
    host.gate.set()
    await asyncio.wait(calls)
    assert sum(call.exception() is None for call in calls) == 2
    assert made.metric("http_client_bulkhead_refused_total") == 4
    assert await made.echo.read("x") == "a"


async def test_a_slow_neighbour_does_not_take_the_connections_of_the_others(fleet: Make) -> None:
    # More than aiohttp's connector has by itself; with time for all of them to be connected on a busy machine.
    slow, quick = await fleet(1, concurrency=150, connect_timeout=60, timeout=60), await fleet(1, connect_timeout=60)
    slow.hosts[0].gate = asyncio.Event()
    calls = [asyncio.ensure_future(slow.echo.read("x")) for _ in range(150)]
    try:
        await until(lambda: len(slow.hosts[0].requests) == 150)
        assert await quick.echo.read("x") == "a"
    finally:
        slow.hosts[0].gate.set()
        await asyncio.gather(*calls)


async def test_a_late_answer_is_asked_for_a_second_time_and_the_loser_is_cancelled(fleet: Make) -> None:
    made = await fleet(2, hedge_after=0.05)
    made.hosts[0].gate = asyncio.Event()
    for _ in range(20):
        assert await made.echo.late("x") == "b"
        if made.hosts[0].requests:
            break
    assert len(made.hosts[0].requests) == 1
    await until(lambda: made.hosts[0].left == 1)
    assert made.metric('http_client_hedges_total{second_won="true",server_address="echo"}') <= 1
    assert made.metric("http_client_hedges_total") == 1
    assert made.metric("http_client_retries_total") == 1  # paid for from the budget
    assert all(instance.pending == 0 for instance in made.upstream.balancer.instances)


async def test_hedging_stops_when_the_budget_is_spent(fleet: Make) -> None:
    made = await fleet(2, hedge_after=0.001, retry_free=0, retry_share=0.1)
    for host in made.hosts:
        host.delay = 0.02
    for _ in range(20):
        await made.echo.late("x")
    assert made.received <= 22


def test_only_what_may_be_done_twice_is_hedged() -> None:
    with pytest.raises(DefinitionError, match="hedge=True is for what may be done twice"):

        @post("/pay", hedge=True)
        async def pay(self: Any, body: str) -> str: ...


async def test_equal_reads_at_once_are_one_request(fleet: Make) -> None:
    made = await fleet(1)
    (host,) = made.hosts
    host.gate = asyncio.Event()
    calls = [asyncio.ensure_future(made.echo.same("x")) for _ in range(20)]
    calls.append(asyncio.ensure_future(made.echo.same("y")))
    await until(lambda: len(host.requests) == 2)
    calls[0].cancel()  # who asked first leaves, and the others still get their answer
    await asyncio.sleep(0.02)
    host.gate.set()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert results[1:] == ["a"] * 20
    assert len(host.requests) == 2
    assert made.metric("http_client_collapsed_total") == 19 - 0
    assert await made.echo.same("x") == "a"
    assert len(host.requests) == 3  # nothing is kept


async def test_reads_of_different_callers_are_never_one_request(fleet: Make) -> None:
    made = await fleet(1)
    (host,) = made.hosts
    host.gate = asyncio.Event()
    calls = []
    for context in (
        WorkContext(bearer="ann"),
        WorkContext(bearer="bob"),
        WorkContext(bearer="ann", tenant="other"),
        WorkContext(),
        WorkContext(bearer="ann"),
    ):
        with working(context):
            calls.append(asyncio.ensure_future(made.echo.same("x")))
    await until(lambda: len(host.requests) == 4)
    host.gate.set()
    await asyncio.gather(*calls)
    assert len(host.requests) == 4


async def test_collapsed_reads_that_nobody_waits_for_are_given_up(fleet: Make) -> None:
    made = await fleet(1)
    (host,) = made.hosts
    host.gate = asyncio.Event()
    calls = [asyncio.ensure_future(made.echo.same("x")) for _ in range(3)]
    await until(lambda: len(host.requests) == 1)
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)
    await until(lambda: host.left == 1)


async def test_who_has_more_time_than_the_first_asks_again(fleet: Make) -> None:
    made = await fleet(1)
    (host,) = made.hosts
    host.gate = asyncio.Event()
    with working(WorkContext(deadline=time.monotonic() + 0.1)):
        first = asyncio.ensure_future(made.echo.same("x"))
    await until(lambda: len(host.requests) == 1)
    second = asyncio.ensure_future(made.echo.same("x"))
    await asyncio.wait([first])
    assert isinstance(first.exception(), DeadlineExceeded)
    await until(lambda: len(host.requests) == 2)
    host.gate.set()
    assert await second == "a"
