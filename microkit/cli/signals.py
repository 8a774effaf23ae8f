"""What signals do to a command that runs until it is told to end."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable
from typing import TypeVar

Result = TypeVar("Result")


def on_signals(stop: asyncio.Event, *, again: bool = True) -> None:
    """The first SIGINT or SIGTERM sets ``stop``; the second cancels the current task, wherever it is, unless it is not
    ``again`` listened to: so a process that two others may tell to end drains all the same. SIGHUP, the end of the
    terminal, sets ``stop``, too, unless it is ignored (nohup); it comes more than once, which does not count."""
    loop = asyncio.get_running_loop()
    main = asyncio.current_task()

    def on_signal() -> None:
        if again and stop.is_set() and main is not None:
            main.cancel()
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        loop.add_signal_handler(signal.SIGHUP, stop.set)


async def unless_told(stop: asyncio.Event, work: Awaitable[Result]) -> Result | None:
    """What the work comes to; ``None`` where ``stop`` was set before: then it is cancelled, and was waited for."""
    doing, told = asyncio.ensure_future(work), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({doing, told}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        told.cancel()
        if not doing.done():
            doing.cancel()
            await asyncio.gather(doing, return_exceptions=True)
    return None if doing.cancelled() else doing.result()
