"""What a command does when it is told to end: also before it has begun, and when its terminal goes."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from types import FrameType

import pytest

from microkit.cli.signals import on_signals, unless_told

pytestmark = pytest.mark.anyio


@pytest.fixture
def as_before() -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.usefixtures("as_before")
async def test_the_end_of_the_terminal_ends_it_in_order_however_often_it_is_told() -> None:
    def unheard(number: int, frame: FrameType | None) -> None:
        raise AssertionError("nobody listens to it")

    signal.signal(signal.SIGHUP, unheard)
    stop = asyncio.Event()
    on_signals(stop)
    for _ in range(2):  # the shell tells it, and the kernel
        os.kill(os.getpid(), signal.SIGHUP)
        async with asyncio.timeout(30):
            await stop.wait()
    await asyncio.sleep(0)


@pytest.mark.usefixtures("as_before")
async def test_who_was_told_not_to_hang_up_goes_on() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    on_signals(asyncio.Event())
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


async def test_what_is_being_started_is_ended_as_soon_as_it_is_told() -> None:
    stop, ended = asyncio.Event(), []

    async def start() -> str:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append("in order")
        return "started"

    asyncio.get_running_loop().call_soon(stop.set)
    assert await unless_told(stop, start()) is None
    assert ended == ["in order"]


async def test_what_was_started_is_there() -> None:
    async def start() -> str:
        return "started"

    assert await unless_told(asyncio.Event(), start()) == "started"


async def test_why_it_does_not_start_is_told() -> None:
    async def start() -> str:
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        await unless_told(asyncio.Event(), start())
