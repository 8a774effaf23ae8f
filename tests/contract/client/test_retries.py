"""What is asked for again, where, how often, and for how long."""

from __future__ import annotations

import time

import pytest

from microkit.context import WorkContext, working
from microkit.errors import DeadlineExceeded, RemoteProblem
from microkit.settings.clients import OperationSettings
from tests.contract.client.hosts import Make

pytestmark = pytest.mark.anyio


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
    made = await fleet(2, attempt_timeout=0.5, attempts=10)
    for host in made.hosts:
        host.delay = 5.0
    with working(WorkContext(deadline=time.monotonic() + 2.0)), pytest.raises(DeadlineExceeded):
        await made.echo.read("x")
    assert 2 <= made.received <= 4
    told = sorted(int(request["request-timeout-ms"]) for host in made.hosts for request in host.requests)
    assert told == sorted(set(told))  # less each time
    assert told[-1] <= 2000


async def test_an_attempt_that_takes_too_long_is_followed_by_another(fleet: Make) -> None:
    made = await fleet(2, attempt_timeout=0.5)
    made.hosts[0].delay = 5.0
    assert [await made.echo.read("x") for _ in range(3)] == ["b"] * 3
