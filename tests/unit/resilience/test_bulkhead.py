"""No more calls at once than allowed; the rest wait in turn, and not for long."""

from __future__ import annotations

import asyncio

import pytest

from microkit.resilience.bulkhead import Bulkhead, BulkheadFull

pytestmark = pytest.mark.anyio


async def test_never_more_than_allowed_are_inside() -> None:
    bulkhead = Bulkhead("billing", 3, 30.0)
    inside = most = 0

    async def call() -> None:
        nonlocal inside, most
        await bulkhead.enter()
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(0.001)
        inside -= 1
        bulkhead.leave()

    await asyncio.gather(*(call() for _ in range(50)))
    assert most == 3
    assert (bulkhead.active, bulkhead.waiting) == (0, 0)


async def test_who_waits_too_long_is_refused_and_takes_no_place() -> None:
    bulkhead = Bulkhead("billing", 1, 0.01)
    await bulkhead.enter()
    with pytest.raises(BulkheadFull, match="1 calls to billing"):
        await bulkhead.enter()
    assert bulkhead.refused == 1
    assert bulkhead.waiting == 0
    bulkhead.leave()
    await bulkhead.enter()


async def test_places_are_given_in_turn_and_a_cancelled_one_is_passed_on() -> None:
    bulkhead = Bulkhead("billing", 1, 30.0)
    await bulkhead.enter()
    order: list[int] = []

    async def call(number: int) -> None:
        await bulkhead.enter()
        order.append(number)
        bulkhead.leave()

    tasks = [asyncio.create_task(call(number)) for number in range(4)]
    await asyncio.sleep(0.01)
    tasks[1].cancel()
    bulkhead.leave()
    tasks[0].cancel()  # in the same turn of the loop as its place was given
    await asyncio.wait(tasks)
    assert order == [2, 3]
    assert bulkhead.active == 0
