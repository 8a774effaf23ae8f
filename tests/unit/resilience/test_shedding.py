"""The gate, decided upon by the test in the place of the event loop's load."""

from __future__ import annotations

import asyncio
import time

import pytest

from microkit.resilience.patience import LEAST, Patience, tolerated
from microkit.resilience.shed import Gate, LoopLoad, Overloaded

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


async def refuse(gate: Gate, waited: float) -> None:
    assert not gate.enter_now(waited)
    with pytest.raises(Overloaded):
        await gate.enter(waited)


async def test_whoever_has_to_be_refused_in_a_burst_makes_it_an_overload_in_which_only_what_is_critical_waits() -> None:
    gate = Gate(patience=0.1)
    assert gate.enter_now(0.09)
    gate.leave(0.0001)
    await refuse(gate, 0.11)
    assert gate.overloaded
    await refuse(gate, 0.09)
    await gate.enter(0.09, critical=True)
    gate.leave(0.0001)
    assert gate.enter_now(LEAST / 2)
    gate.close()


async def test_a_queue_that_is_worked_off_refuses_nobody_however_long_it_stands() -> None:
    gate = Gate(patience=0.1)
    for _ in range(100):
        assert gate.enter_now(0.09)
        gate._decide(busy=True, late=True)
        gate.leave(0.01)
    assert not gate.overloaded
    assert gate.limit == 1000
    gate.close()


async def test_overload_lasts_while_many_are_refused_or_a_queue_stands_and_one_pause_is_no_end_of_it() -> None:
    gate = Gate(patience=0.1)

    async def interval(*, late: bool = False, refused: int = 0) -> bool:
        for _ in range(10 - refused):
            assert gate.enter_now(0.0)
            gate.leave(0.0001)
        for _ in range(refused):
            await refuse(gate, 0.2)
        gate._decide(busy=False, late=late)
        return gate.overloaded

    assert not await interval(late=True), "a busy machine is no overload"
    assert await interval(refused=1)
    for _ in range(10):
        assert await interval(refused=6), "whom it refuses is no queue that could be seen"
    for _ in range(10):
        assert await interval(late=True)
    assert await interval(), "one pause"
    assert gate.enter_now(1.9 * LEAST)
    gate.leave(0.0001)
    assert await interval(late=True)
    await refuse(gate, 1.9 * LEAST)
    gate._decide(busy=False, late=True)
    assert [await interval() for _ in range(3)] == [True, True, False]
    gate.close()


def test_patience_comes_back_step_by_step() -> None:
    patience = Patience(1.0)
    patience.lost(0.02)
    found = []
    while patience.overloaded:
        found.append(patience.seconds)
        patience.review(100, 10, 0.02, standing=False)
    assert found == [0.02, 0.04, 0.08, 0.16, 0.32, 0.64]
    assert patience.seconds == 1.0


def test_who_may_wait_for_less_than_is_ever_tight_may_not_wait_longer_under_overload() -> None:
    patience = Patience(0.01)
    patience.lost(0.02)
    assert patience.seconds == 0.01
    patience.review(10, 10, 5.0, standing=True)
    assert patience.seconds == 0.01


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


async def overloaded(*, most: int) -> Gate:
    gate = Gate(most=most, patience=30)
    await refuse(gate, 31)
    return gate


async def test_the_limit_falls_under_overload_and_rises_again_when_it_is_needed() -> None:
    gate = await overloaded(most=100)
    for _ in range(50):
        assert gate.enter_now(0.0)
    gate._decide(busy=True, late=True)
    assert gate.limit == 40
    for _ in range(30):
        gate._came = 1
        gate._decide(busy=True, late=True)
    assert gate.limit == 1
    waiting = [asyncio.ensure_future(gate.enter(0.0, critical=True)) for _ in range(3)]
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
    gate = await overloaded(most=100)
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
    gate = await overloaded(most=100)
    for _ in range(30):
        for _ in range(400):  # in 100 ms: 20 of them while a look may be late
            assert gate.enter_now(0.0)
            gate.leave(0.001)
        gate._decide(True, True)
    assert gate.limit == pytest.approx(20)
    gate.close()
