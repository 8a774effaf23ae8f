"""What SIGINT and SIGTERM do to a command that runs until it is told to end."""

from __future__ import annotations

import asyncio
import signal


def on_signals(stop: asyncio.Event, *, again: bool = True) -> None:
    """The first SIGINT or SIGTERM sets ``stop``; the second cancels the current task, wherever it is, unless it is not
    ``again`` listened to: so a process that two others may tell to end drains all the same."""
    loop = asyncio.get_running_loop()
    main = asyncio.current_task()

    def on_signal() -> None:
        if again and stop.is_set() and main is not None:
            main.cancel()
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
