"""The breaker opens on real failures only, and half open it lets exactly one call through."""

from __future__ import annotations

import asyncio

import pytest

from microkit.errors import BadGateway, Conflict, Unavailable
from microkit.resilience.breaker import Breaker, BreakerOpen, BreakerState

pytestmark = pytest.mark.anyio


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def told() -> list[BreakerState]:
    return []


@pytest.fixture
def breaker(clock: Clock, told: list[BreakerState]) -> Breaker:
    return Breaker("billing", failures=3, reset=5.0, changed=lambda _, state: told.append(state), clock=clock)


async def call(breaker: Breaker, error: BaseException | None = None) -> None:
    with breaker.calling():
        await asyncio.sleep(0)
        if error is not None:
            raise error


async def fail(breaker: Breaker, times: int, error: type[Exception] = BadGateway) -> None:
    for _ in range(times):
        with pytest.raises(error):
            await call(breaker, error("x"))


async def test_failures_in_a_row_open_it_and_it_refuses_at_once(breaker: Breaker, told: list[BreakerState]) -> None:
    await fail(breaker, 2)
    await call(breaker)
    await fail(breaker, 2)
    assert breaker.closed
    await fail(breaker, 1, ConnectionError)
    assert breaker.state is BreakerState.OPEN
    assert told == [BreakerState.OPEN]
    with pytest.raises(BreakerOpen) as caught:
        await call(breaker)
    assert isinstance(caught.value, Unavailable)
    assert 1 <= int(caught.value.headers["Retry-After"]) <= 6


async def test_a_refusal_by_the_other_side_is_an_answer(breaker: Breaker) -> None:
    await fail(breaker, 20, Conflict)
    assert breaker.closed
    await fail(breaker, 2)
    await fail(breaker, 1, Conflict)
    await fail(breaker, 2)
    assert breaker.closed


async def test_a_cancelled_call_leaves_no_mark(breaker: Breaker, clock: Clock) -> None:
    async def cancelled() -> None:
        with breaker.calling():
            await asyncio.Event().wait()

    await fail(breaker, 2)
    for _ in range(5):
        task = asyncio.create_task(cancelled())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
    assert breaker.closed
    assert breaker.failures == 2
    await fail(breaker, 1)
    assert breaker.state is BreakerState.OPEN
    clock.now += 6
    task = asyncio.create_task(cancelled())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    halfway: BreakerState = breaker.state
    assert halfway is BreakerState.HALF_OPEN  # neither closed nor open again
    assert breaker.admits()


async def test_half_open_one_call_is_the_probe_and_the_others_are_refused(
    breaker: Breaker, clock: Clock, told: list[BreakerState]
) -> None:
    await fail(breaker, 3)
    clock.now += 4.4
    assert not breaker.admits()
    clock.now += 1.2
    assert breaker.admits()
    go = asyncio.Event()
    let_through = refused = 0

    async def probe() -> None:
        nonlocal let_through, refused
        try:
            with breaker.calling():
                let_through += 1
                await go.wait()
        except BreakerOpen:
            refused += 1

    probes = [asyncio.create_task(probe()) for _ in range(100)]
    await asyncio.sleep(0.01)
    go.set()
    await asyncio.gather(*probes)
    assert (let_through, refused) == (1, 99)
    assert breaker.closed
    assert told == [BreakerState.OPEN, BreakerState.HALF_OPEN, BreakerState.CLOSED]


async def test_a_failed_probe_opens_it_for_as_long_again(breaker: Breaker, clock: Clock) -> None:
    await fail(breaker, 3)
    for _ in range(3):
        clock.now += 6
        await fail(breaker, 1)
        assert breaker.state is BreakerState.OPEN
        assert not breaker.admits()


async def test_who_began_before_it_opened_decides_nothing_while_it_is_half_open(breaker: Breaker, clock: Clock) -> None:
    early_success, early_failure = breaker.enter(), breaker.enter()
    await fail(breaker, 3)
    clock.now += 6
    probe = breaker.enter()
    breaker.succeeded(early_success)
    breaker.failed(early_failure)
    assert breaker.state is BreakerState.HALF_OPEN
    assert not breaker.admits()
    breaker.succeeded(probe)
    assert breaker.closed


async def test_the_wall_clock_has_no_say(breaker: Breaker, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    await fail(breaker, 3)
    clock.now += 6
    monkeypatch.setattr("time.time", lambda: 0.0)
    assert breaker.admits()
    await call(breaker)
    assert breaker.closed
