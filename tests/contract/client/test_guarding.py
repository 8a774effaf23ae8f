"""What callers see of a service that fails, and what the service sees of its callers: on real servers, in counts."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import pytest
from starlette.types import Receive, Scope, Send

from microkit.client import HttpCaller, Policies, Upstream
from microkit.context import WorkContext, working
from microkit.contract import Contract, get, post
from microkit.discovery.port import Endpoint
from microkit.errors import BadGateway, DeadlineExceeded, DefinitionError, RemoteProblem, Unavailable
from microkit.resilience.breaker import BreakerOpen, BreakerState
from microkit.resilience.bulkhead import BulkheadFull
from microkit.settings.clients import ClientSettings, OperationSettings
from microkit.telemetry import Telemetry, TraceRing
from microkit.web import Server

pytestmark = pytest.mark.anyio


class Echo(Contract, service="echo", allow="member"):
    @get("/read/{name}")
    async def read(self, name: str) -> str: ...

    @post("/write")
    async def write(self, body: str) -> str: ...

    @get("/late/{name}", hedge=True)
    async def late(self, name: str) -> str: ...

    @get("/same/{name}", collapse=True)
    async def same(self, name: str) -> str: ...


class Host:
    """One instance. It answers its own name with ``status``, after ``gate`` if there is one."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.status = 200
        self.headers: dict[str, str] = {}
        self.gate: asyncio.Event | None = None
        self.delay = 0.0
        self.requests: list[dict[str, str]] = []
        self.left = 0
        self.server = Server(self)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body", False):
            pass
        self.requests.append({name.decode(): value.decode() for name, value in scope["headers"]})
        if self.gate is not None and not await self._opened(receive):
            return
        await asyncio.sleep(self.delay)
        body = f'"{self.name}"'.encode() if self.status < 400 else b"{}"
        headers = {"content-length": str(len(body)), "content-type": "application/json", **self.headers}
        await send(
            {
                "type": "http.response.start",
                "status": self.status,
                "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            }
        )
        await send({"type": "http.response.body", "body": body})

    async def _opened(self, receive: Receive) -> bool:
        """Whether the gate opened before the client left."""
        assert self.gate is not None
        opened, left = asyncio.ensure_future(self.gate.wait()), asyncio.ensure_future(receive())
        await asyncio.wait((opened, left), return_when=asyncio.FIRST_COMPLETED)
        for task in (opened, left):
            task.cancel()
        self.left += not self.gate.is_set()
        return self.gate.is_set()


class Known:
    """A resolver whose list the test changes."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        self.endpoints = tuple(endpoints)

    async def resolve(self, _: str) -> Sequence[Endpoint]:
        return self.endpoints


class Fleet:
    """Some hosts and a client of them."""

    def __init__(self, hosts: list[Host], session: aiohttp.ClientSession, settings: dict[str, Any]) -> None:
        self.hosts = hosts
        self.telemetry = Telemetry("caller", ring=TraceRing())
        self.known = Known([Endpoint(host.server.url) for host in hosts])
        clients = {"echo": ClientSettings(**settings)}
        self.upstream = Upstream(
            "echo", resolver=self.known, telemetry=self.telemetry, guard=Policies("echo", clients, 10.0).guard()
        )
        caller = HttpCaller(self.upstream, session=session, telemetry=self.telemetry, clients=clients)
        self.echo = Echo(caller)

    @property
    def received(self) -> int:
        return sum(len(host.requests) for host in self.hosts)

    async def reads(self, times: int, at_once: int = 8) -> tuple[int, list[Exception]]:
        """How many were answered, and the errors of the others."""
        gate = asyncio.Semaphore(at_once)

        async def one() -> Exception | None:
            async with gate:
                try:
                    await self.echo.read("x")
                except (RemoteProblem, Unavailable, BadGateway, DeadlineExceeded) as error:
                    return error
                return None

        results = await asyncio.gather(*(one() for _ in range(times)))
        errors = [error for error in results if error is not None]
        return times - len(errors), errors

    def metric(self, name: str) -> float:
        lines = self.telemetry.exposition().decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((name + "{", name + " ")))


Make = Callable[..., Awaitable[Fleet]]


@pytest.fixture
async def fleet(session: aiohttp.ClientSession) -> AsyncIterator[Make]:
    async with AsyncExitStack() as stack:

        async def make(size: int, **settings: Any) -> Fleet:
            hosts = [Host(chr(ord("a") + number)) for number in range(size)]
            for host in hosts:
                await host.server.start()
                stack.push_async_callback(host.server.stop, 0.1)
            return Fleet(hosts, session, settings)

        yield make


def dead() -> Endpoint:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return Endpoint(f"http://127.0.0.1:{probe.getsockname()[1]}")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)


# The breaker


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
    await made.reads(20, at_once=1)
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
    await made.reads(20, at_once=1)
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


# Bad instances among good ones


async def test_one_instance_that_fails_is_not_noticed_and_is_ejected(fleet: Make) -> None:
    made = await fleet(3)
    made.hosts[0].status = 500
    answered, errors = await made.reads(300)
    assert (answered, errors) == (300, [])
    assert len(made.hosts[0].requests) <= 5 + 8  # in a row, and those under way then
    assert made.upstream.breaker.closed
    assert made.received <= 1.2 * 300


async def ejects_one(made: Fleet) -> None:
    """Many calls at once, so that even the one that is known to fail gets some."""
    async with asyncio.timeout(10):
        while not made.upstream.balancer.ejected:
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
    async with asyncio.timeout(10):
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


# Retries


async def test_a_call_that_changes_something_is_made_again_under_the_same_key_elsewhere(fleet: Make) -> None:
    made = await fleet(2)
    for host in made.hosts:
        host.status = 502
    with pytest.raises(RemoteProblem):
        await made.echo.write("x")
    requests = [request for host in made.hosts for request in host.requests]
    assert len(requests) == 3
    assert all(len(host.requests) >= 1 for host in made.hosts)
    assert len({request["idempotency-key"] for request in requests}) == 1
    assert made.metric("http_client_retries_total") == 2
    assert made.telemetry.ring is not None
    (span,) = made.telemetry.ring.recent(10)
    assert [event.name for event in span.events] == ["retry", "retry"]
    assert span.attributes["http.request.resend_count"] == 2


async def test_a_retry_never_goes_to_the_instance_that_just_failed(fleet: Make) -> None:
    made = await fleet(2)
    made.hosts[0].status = 503
    for _ in range(4):
        assert await made.echo.write("x") == "b"
    for request in made.hosts[1].requests:
        assert int(request["request-timeout-ms"]) <= 10_000


async def test_what_may_not_be_repeated_is_not(fleet: Make) -> None:
    made = await fleet(3, operations={"write": OperationSettings(retry_unsafe=False)})
    for host in made.hosts:
        host.status = 503
    with pytest.raises(RemoteProblem):
        await made.echo.write("x")
    assert made.received == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 422, 429, 501])
async def test_a_refusal_is_not_asked_for_twice(fleet: Make, status: int) -> None:
    made = await fleet(2)
    for host in made.hosts:
        host.status = status
    with pytest.raises(RemoteProblem):
        await made.echo.read("x")
    assert made.received == 1


async def test_come_back_later_is_done_where_there_is_time(fleet: Make) -> None:
    made = await fleet(1)
    (host,) = made.hosts
    host.status, host.headers = 429, {"retry-after": "0"}
    with pytest.raises(RemoteProblem):
        await made.echo.read("x")
    assert len(host.requests) == 3
    for status in (429, 503):
        host.requests.clear()
        host.status, host.headers = status, {"retry-after": "30"}
        with pytest.raises(RemoteProblem):
            await made.echo.read("x")  # it would be over before
        assert len(host.requests) == 1


async def test_the_pause_that_an_instance_asks_for_is_not_held_against_the_others(fleet: Make) -> None:
    made = await fleet(2)
    made.hosts[0].status, made.hosts[0].headers = 503, {"retry-after": "30"}
    assert [await made.echo.read("x") for _ in range(10)] == ["b"] * 10


async def test_the_budget_bounds_the_load_on_a_service_that_only_fails(fleet: Make) -> None:
    """Without its breakers."""
    made = await fleet(3, breaker_failures=1000, ejection_failures=0, retry_free=0)
    for host in made.hosts:
        host.status = 500
    answered, errors = await made.reads(500, at_once=32)
    assert (answered, len(errors)) == (0, 500)
    assert 500 < made.received <= 600
    assert made.metric("http_client_retry_budget_exhausted_total") >= 300


async def test_no_retry_outlasts_the_caller(fleet: Make) -> None:
    made = await fleet(2, attempt_timeout=0.1, attempts=10)
    for host in made.hosts:
        host.delay = 5.0
    with working(WorkContext(deadline=time.monotonic() + 0.25)), pytest.raises(DeadlineExceeded):
        await made.echo.read("x")
    assert 2 <= made.received <= 3
    told = sorted(int(request["request-timeout-ms"]) for host in made.hosts for request in host.requests)
    assert told == sorted(set(told))  # less each time
    assert told[-1] <= 250


async def test_an_attempt_that_takes_too_long_is_followed_by_another(fleet: Make) -> None:
    made = await fleet(2, attempt_timeout=0.2)
    made.hosts[0].delay = 5.0
    assert [await made.echo.read("x") for _ in range(3)] == ["b"] * 3


# Nobody answers, and no time-out is set


async def under_way(made: Fleet, calls: int, seconds: float, operation: str = "read") -> list[str]:
    """The answers of so many calls that are made at once and have so much time."""
    with working(WorkContext(deadline=time.monotonic() + seconds)):
        calling = [getattr(made.echo, operation)("x") for _ in range(calls)]
        return list(await asyncio.gather(*calling))


@pytest.mark.parametrize("operation", ["read", "write"])
async def test_who_asked_an_instance_that_swallows_everything_is_answered_by_another(
    fleet: Make, operation: str
) -> None:
    made = await fleet(2, operations={"write": OperationSettings(retry_unsafe=True)})
    silent, other = made.hosts
    silent.gate = asyncio.Event()
    assert await under_way(made, 8, 2.6, operation) == ["b"] * 8
    swallowed = len(silent.requests)
    assert swallowed >= 1
    assert len(other.requests) == 8
    assert made.metric("http_client_retries_total") == swallowed
    await until(lambda: silent.left == swallowed)  # nobody waits there any more
    assert made.telemetry.ring is not None
    late = [e for span in made.telemetry.ring.recent(20) for e in span.events if e.name == "retry"]
    assert [event.attributes["reason"] for event in late] == ["late"] * swallowed
    assert sum(instance.failures for instance in made.upstream.balancer.instances) == swallowed


async def test_an_answer_that_takes_more_than_half_of_the_time_still_counts(fleet: Make) -> None:
    made = await fleet(2)
    for host in made.hosts:
        host.delay = 1.8
    with working(WorkContext(deadline=time.monotonic() + 3.0)):  # the second would come too late
        assert await made.echo.read("x") in {"a", "b"}
    assert made.received == 2


async def under_way_at_the_first(made: Fleet, seconds: float, operation: str) -> asyncio.Future[list[str]]:
    """A call that the first host works on. From then on the others are known, too."""
    known = made.known.endpoints
    made.known.endpoints = known[:1]
    call = asyncio.ensure_future(under_way(made, 1, seconds, operation))
    await until(lambda: bool(made.hosts[0].requests))
    made.known.endpoints = known
    made.upstream.balancer.update(known)
    return call


async def test_who_cannot_know_whether_its_key_is_kept_does_not_ask_twice_at_once(fleet: Make) -> None:
    made = await fleet(2)
    slow, other = made.hosts
    slow.gate = asyncio.Event()
    call = await under_way_at_the_first(made, 1.0, "write")
    with pytest.raises(DeadlineExceeded):
        await call
    assert (len(slow.requests), len(other.requests)) == (1, 0)


@pytest.mark.parametrize("status", [409, 429])
async def test_to_come_back_later_is_no_answer_while_the_first_attempt_is_under_way(fleet: Make, status: int) -> None:
    made = await fleet(2, retry_unsafe=True)
    slow, other = made.hosts
    slow.gate = asyncio.Event()
    other.status, other.headers = status, {"retry-after": "1"}
    call = await under_way_at_the_first(made, 4.0, "write")
    await until(lambda: bool(other.requests))
    await asyncio.sleep(0.05)  # for the refusal to arrive
    slow.gate.set()
    assert await call == ["a"]
    assert (len(slow.requests), len(other.requests)) == (1, 1)


async def test_a_conflict_that_asks_nobody_to_come_back_is_an_answer(fleet: Make) -> None:
    made = await fleet(2, retry_unsafe=True)
    slow, other = made.hosts
    slow.gate = asyncio.Event()
    other.status = 409
    call = await under_way_at_the_first(made, 4.0, "write")
    with pytest.raises(RemoteProblem) as refused:
        await call
    assert refused.value.status == 409


async def test_what_may_not_be_repeated_and_whose_budget_is_empty_waits_alone(fleet: Make) -> None:
    for settings in ({"retry_unsafe": False}, {"attempts": 1}, {"retry_free": 0, "retry_share": 0}):
        made = await fleet(2, **settings)
        for host in made.hosts:
            host.gate = asyncio.Event()
        with pytest.raises(DeadlineExceeded):
            await under_way(made, 1, 0.4, "write")
        assert made.received == 1


async def test_a_caller_that_leaves_takes_both_attempts_with_it(fleet: Make) -> None:
    made = await fleet(2)
    for host in made.hosts:
        host.gate = asyncio.Event()
    call = asyncio.ensure_future(under_way(made, 1, 2.0))
    await until(lambda: made.received == 2)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await until(lambda: sum(host.left for host in made.hosts) == 2)
    assert sum(instance.pending for instance in made.upstream.balancer.instances) == 0
    assert sum(instance.failures for instance in made.upstream.balancer.instances) == 0


# The bulkhead, hedging, collapsing


async def test_no_more_calls_at_once_than_allowed(fleet: Make) -> None:
    made = await fleet(1, concurrency=2, queue_timeout=0.05)
    (host,) = made.hosts
    host.gate = asyncio.Event()
    calls = [asyncio.ensure_future(made.echo.read("x")) for _ in range(6)]
    await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    await until(lambda: sum(call.done() for call in calls) == 4)
    assert all(isinstance(call.exception(), BulkheadFull) for call in calls if call.done())
    assert len(host.requests) == 2
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
