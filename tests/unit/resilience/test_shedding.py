"""The gate, decided upon by the test in the place of the event loop's load."""

from __future__ import annotations

import asyncio
import time

import pytest

from microkit.resilience.shed import CALM, LEAST_TOLERANCE, Gate, LoopLoad, Overloaded, tolerated

pytestmark = pytest.mark.anyio


async def test_up_to_the_limit_everybody_is_let_in_at_once() -> None:
    gate = Gate(most=3)
    assert [gate.enter_now(0.0) for _ in range(5)] == [True, True, True, False, False]
    gate.leave(0.01)
    assert gate.enter_now(0.0)
    gate.close()


async def test_who_finds_no_place_waits_in_order_and_gets_the_next_ones() -> None:
    gate = Gate(most=1, patience=30)
    assert gate.enter_now(0.0)
    came: list[int] = []

    async def one(number: int) -> None:
        await gate.enter(0.0)
        came.append(number)
        gate.leave(0.0)

    async with asyncio.TaskGroup() as group:
        for number in range(5):
            group.create_task(one(number))
        await asyncio.sleep(0)
        assert gate.waiting == 5
        gate.leave(0.0)
    assert came == [0, 1, 2, 3, 4]
    assert (gate.in_flight, gate.waiting) == (0, 0)
    gate.close()


async def test_what_is_critical_goes_before_the_others() -> None:
    gate = Gate(most=1, patience=30)
    assert gate.enter_now(0.0)
    came: list[str] = []

    async def one(name: str, critical: bool) -> None:
        await gate.enter(0.0, critical=critical)
        came.append(name)
        gate.leave(0.0)

    async with asyncio.TaskGroup() as group:
        for name, critical in (("a", False), ("b", False), ("saga", True)):
            group.create_task(one(name, critical))
        await asyncio.sleep(0)
        gate.leave(0.0)
    assert came == ["saga", "a", "b"]
    gate.close()


async def test_nobody_waits_for_longer_than_the_patience_though_no_place_becomes_free() -> None:
    gate = Gate(most=1, patience=0.05)
    assert gate.enter_now(0.0)
    found = await asyncio.gather(*(gate.enter(0.0) for _ in range(20)), return_exceptions=True)
    assert all(isinstance(one, Overloaded) and one.reason == "concurrency" for one in found)
    assert gate.waiting == 0
    gate.close()


async def test_who_has_waited_in_the_event_loop_for_too_long_is_refused() -> None:
    gate = Gate(patience=0.1)
    assert not gate.enter_now(0.2)
    with pytest.raises(Overloaded, match="queue"):
        await gate.enter(0.2)
    assert gate.in_flight == 0
    gate.close()


async def test_under_load_a_standing_queue_is_not_tolerated_but_for_what_is_critical() -> None:
    gate = Gate(patience=0.1)
    assert gate.enter_now(0.05)
    gate._decide(busy=True, late=True)
    gate.leave(0.001)
    assert not gate.enter_now(0.05)
    with pytest.raises(Overloaded):
        await gate.enter(0.05)
    await gate.enter(0.05, critical=True)
    gate.leave(0.001)
    assert gate.enter_now(LEAST_TOLERANCE / 4)
    gate.close()


async def test_a_busy_loop_without_a_queue_refuses_nobody() -> None:
    gate = Gate(patience=0.1)
    for _ in range(10):
        assert gate.enter_now(0.0)
        gate._decide(busy=True, late=False)
        gate.leave(0.0001)
    assert not gate.overloaded
    assert gate.enter_now(0.09)
    gate.close()


async def test_a_queue_that_never_empties_is_overload_though_the_loop_is_in_time() -> None:
    gate = Gate(most=1, patience=30)
    assert gate.enter_now(0.0)
    gate._decide(busy=False, late=False)
    waiting = asyncio.ensure_future(gate.enter(1.0))
    await asyncio.sleep(0)
    gate.leave(0.01)
    await waiting
    gate._decide(busy=False, late=False)
    assert gate.overloaded
    gate.close()


async def test_overload_lasts_while_there_is_somebody_to_refuse_and_one_pause_is_no_end_of_it() -> None:
    gate = Gate(patience=0.1)

    async def interval(*, busy: bool, late: bool = False, refuse: bool) -> bool:
        assert gate.enter_now(0.0)
        gate.leave(0.01)
        if refuse:
            with pytest.raises(Overloaded):
                await gate.enter(0.2)
        gate._decide(busy=busy, late=late)
        return gate.overloaded

    assert await interval(busy=True, late=True, refuse=False)
    for _ in range(10):
        assert await interval(busy=True, refuse=True), "whom it refuses is no queue that could be seen"
    assert await interval(busy=False, refuse=True), "one pause"
    assert await interval(busy=True, refuse=True)
    assert [await interval(busy=False, refuse=True) for _ in range(CALM)] == [*[True] * (CALM - 1), False]
    assert await interval(busy=True, refuse=True), "and at once again"
    assert not await interval(busy=True, refuse=False), "nobody to refuse"
    gate.close()


@pytest.mark.parametrize(
    ("service", "wait"), [(0.0001, 0.02), (0.001, 0.005), (0.0025, 0.005), (0.005, 0.01), (0.01, 0.02), (0.05, 0.05)]
)
def test_what_is_tolerated_follows_what_the_work_takes(service: float, wait: float) -> None:
    assert tolerated(service) == pytest.approx(wait)


async def test_a_loop_whose_turns_take_a_second_is_decided_upon_in_time() -> None:
    decided: asyncio.Queue[tuple[bool, float]] = asyncio.Queue()

    def decide(_busy: bool, late: bool, seconds: float) -> bool:
        decided.put_nowait((late, seconds))
        return False

    load = LoopLoad(decide)
    load.look()
    time.sleep(0.5)  # noqa: ASYNC251  one turn of the loop
    await asyncio.sleep(0)
    late, seconds = await decided.get()
    assert late
    assert seconds >= 0.5


async def test_the_limit_falls_under_load_and_rises_again_when_it_is_needed() -> None:
    gate = Gate(most=100, patience=30)
    for _ in range(50):
        assert gate.enter_now(0.0)
    gate._decide(busy=True, late=True)
    assert gate.limit == 40
    for _ in range(30):
        gate._came = True
        gate._decide(busy=True, late=True)
    assert gate.limit == 1
    waiting = [asyncio.ensure_future(gate.enter(0.0)) for _ in range(3)]
    await asyncio.sleep(0)
    limits = []
    for _ in range(30):
        gate._pressed = True
        gate._decide(busy=False, late=False)
        limits.append(gate.limit)
    assert limits == sorted(limits)
    assert limits[-1] == 100
    await asyncio.gather(*waiting)
    gate.close()


async def test_a_service_that_nobody_needs_forgets_its_load() -> None:
    gate = Gate(most=100)
    assert gate.enter_now(0.0)
    gate._decide(busy=True, late=True)
    gate.leave(0.0)
    gate._decide(busy=True, late=True)
    gate._decide(busy=True, late=True)
    assert (gate.limit, gate.overloaded) == (100, False)
    gate.close()


async def test_who_leaves_while_waiting_takes_no_place_with_it() -> None:
    gate = Gate(most=1, patience=30)
    assert gate.enter_now(0.0)
    waiting = [asyncio.ensure_future(gate.enter(0.0)) for _ in range(4)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    gate.leave(0.0)  # hands the place to the next, who is cancelled in the same moment
    waiting[1].cancel()
    await asyncio.sleep(0)
    await waiting[2]
    gate.leave(0.0)
    await waiting[3]
    gate.leave(0.0)
    assert gate.in_flight == 0
    gate.close()


async def test_closing_refuses_who_waits() -> None:
    gate = Gate(most=1, patience=30)
    assert gate.enter_now(0.0)
    waiting = asyncio.ensure_future(gate.enter(0.0))
    await asyncio.sleep(0)
    gate.close()
    with pytest.raises(Overloaded):
        await waiting


async def test_a_loop_without_a_pause_is_noticed_and_an_idle_one_is_not() -> None:
    decided: asyncio.Queue[bool] = asyncio.Queue()

    def decide(busy: bool, late: bool, _seconds: float) -> bool:
        decided.put_nowait(busy or late)
        return True

    load = LoopLoad(decide)
    load.look()
    calm = [await decided.get() for _ in range(20)]
    assert not all(calm)  # a machine with other work may disturb some

    async def compute() -> None:
        while True:
            until = time.monotonic() + 0.02
            while time.monotonic() < until:
                pass
            await asyncio.sleep(0)

    busy = asyncio.ensure_future(compute())
    while not await decided.get():
        pass
    busy.cancel()
    load.stop()


async def test_quick_work_that_waits_for_others_keeps_some_places_however_busy_the_loop_is() -> None:
    gate = Gate(most=100, patience=30)
    for _ in range(30):
        for _ in range(400):  # in 100 ms: 20 of them while a look may be late
            assert gate.enter_now(0.0)
            gate.leave(0.001)
        gate._decide(True, False)
    assert gate.limit == pytest.approx(20)
    gate.close()
