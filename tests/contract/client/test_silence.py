"""Nobody answers, and no time-out is set: a second attempt beside the first."""

from __future__ import annotations

import asyncio
import time

import pytest

from microkit.context import WorkContext, working
from microkit.errors import RemoteProblem
from microkit.settings.clients import OperationSettings
from tests.contract.client.hosts import Fleet, Make, until

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("soon_beside")]

AMPLE = 30.0
"""Seconds that the calls have."""
LONG_AFTER = 1.0
"""Seconds after which a second attempt would have begun."""


@pytest.fixture
def soon_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second attempt begins after 0.3 s of them and not after half: what comes then has time."""
    monkeypatch.setattr("microkit.client.attempts.COMPANY_AFTER", 0.01)
    monkeypatch.setattr("microkit.client.policy.FAIR", 0.1)


async def under_way(made: Fleet, calls: int, operation: str = "read") -> list[str]:
    """The answers of so many calls that are made at once."""
    with working(WorkContext(deadline=time.monotonic() + AMPLE)):
        calling = [getattr(made.echo, operation)("x") for _ in range(calls)]
        return list(await asyncio.gather(*calling))


@pytest.mark.parametrize("operation", ["read", "write"])
async def test_who_asked_an_instance_that_swallows_everything_is_answered_by_another(
    fleet: Make, operation: str
) -> None:
    made = await fleet(2, operations={"write": OperationSettings(retry_unsafe=True)})
    silent, other = made.hosts
    silent.gate = asyncio.Event()
    assert await under_way(made, 8, operation) == ["b"] * 8
    swallowed = len(silent.requests)
    assert swallowed >= 1
    assert len(other.requests) == 8
    assert made.metric("http_client_retries_total") == swallowed
    await until(lambda: silent.left == swallowed)  # nobody waits there any more
    assert made.telemetry.ring is not None
    late = [e for span in made.telemetry.ring.recent(20) for e in span.events if e.name == "retry"]
    assert [event.attributes["reason"] for event in late] == ["late"] * swallowed
    assert sum(instance.failures for instance in made.upstream.balancer.instances) == swallowed


async def under_way_at_the_first(made: Fleet, operation: str) -> asyncio.Future[list[str]]:
    """A call that the first host works on. From then on the others are known, too."""
    known = made.known.endpoints
    made.known.endpoints = known[:1]
    call = asyncio.ensure_future(under_way(made, 1, operation))
    await until(lambda: bool(made.hosts[0].requests))
    made.known.endpoints = known
    made.upstream.balancer.update(known)
    return call


async def test_an_answer_that_comes_while_a_second_attempt_is_under_way_still_counts(fleet: Make) -> None:
    made = await fleet(2)
    slow, other = made.hosts
    slow.gate, other.gate = asyncio.Event(), asyncio.Event()
    call = await under_way_at_the_first(made, "read")
    await until(lambda: bool(other.requests))
    slow.gate.set()
    assert await call == ["a"]
    await until(lambda: other.left == 1)
    assert made.received == 2


async def test_who_cannot_know_whether_its_key_is_kept_does_not_ask_twice_at_once(fleet: Make) -> None:
    made = await fleet(2)
    slow, other = made.hosts
    slow.gate = asyncio.Event()
    call = await under_way_at_the_first(made, "write")
    await asyncio.sleep(LONG_AFTER)
    slow.gate.set()
    assert await call == ["a"]
    assert (len(slow.requests), len(other.requests)) == (1, 0)


@pytest.mark.parametrize("status", [409, 429])
async def test_to_come_back_later_is_no_answer_while_the_first_attempt_is_under_way(fleet: Make, status: int) -> None:
    made = await fleet(2, retry_unsafe=True)
    slow, other = made.hosts
    slow.gate = asyncio.Event()
    other.status, other.headers = status, {"retry-after": "1"}
    call = await under_way_at_the_first(made, "write")
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
    call = await under_way_at_the_first(made, "write")
    with pytest.raises(RemoteProblem) as refused:
        await call
    assert refused.value.status == 409


async def test_what_may_not_be_repeated_and_whose_budget_is_empty_waits_alone(fleet: Make) -> None:
    for settings in ({"retry_unsafe": False}, {"attempts": 1}, {"retry_free": 0, "retry_share": 0}):
        made = await fleet(2, **settings)
        gate = asyncio.Event()
        for host in made.hosts:
            host.gate = gate
        call = asyncio.ensure_future(under_way(made, 1, "write"))
        await asyncio.sleep(LONG_AFTER)
        gate.set()
        assert len(await call) == 1
        assert made.received == 1


async def test_a_caller_that_leaves_takes_both_attempts_with_it(fleet: Make) -> None:
    made = await fleet(2)
    for host in made.hosts:
        host.gate = asyncio.Event()
    call = asyncio.ensure_future(under_way(made, 1))
    await until(lambda: made.received == 2)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await until(lambda: sum(host.left for host in made.hosts) == 2)
    assert sum(instance.pending for instance in made.upstream.balancer.instances) == 0
    assert sum(instance.failures for instance in made.upstream.balancer.instances) == 0
