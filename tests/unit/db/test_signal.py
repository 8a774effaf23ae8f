from __future__ import annotations

import asyncio

import pytest

from microkit.db import Signal

pytestmark = pytest.mark.anyio


async def test_a_signal_set_while_nobody_waits_is_kept_and_wakes_once() -> None:
    signal = Signal()
    signal.set()
    signal.set()
    assert await signal.wait(0)
    assert not await signal.wait(0)


async def test_a_waiter_is_woken() -> None:
    signal = Signal()
    waiter = asyncio.create_task(signal.wait())
    await asyncio.sleep(0)
    signal.set()
    assert await waiter


async def test_a_cancelled_waiter_leaves_the_signal_to_the_next() -> None:
    signal = Signal()
    waiter = asyncio.create_task(signal.wait())
    await asyncio.sleep(0)
    signal.set()
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    assert await signal.wait(0)
