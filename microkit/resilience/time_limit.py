"""The time that calls may take, watched by one timer for all of them.

A timer for each costs some five microseconds (``asyncio.timeout``); noting a time in a dictionary a tenth of that.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

TICK: Final = 0.02
"""Seconds between two looks. What may take less than fifty of them has a timer of its own."""

_OWN_TIMER_BELOW: Final = 1.0


class TimeLimit:
    """The limit of the work that the current task does until :meth:`TimeLimits.end`."""

    __slots__ = ("cancelling", "passed", "task", "timer", "when")

    def __init__(self, task: asyncio.Task[object]) -> None:
        self.task = task
        self.when = 0.0
        self.cancelling = task.cancelling()
        self.passed = False
        self.timer: asyncio.TimerHandle | None = None

    def strike(self) -> None:
        """Cancels the work."""
        self.passed = True
        self.task.cancel()


class TimeLimits:
    """Cancels the tasks whose time is over, at most a tick late, as :func:`asyncio.timeout` would."""

    __slots__ = ("_timer", "_watched")

    def __init__(self) -> None:
        self._watched: dict[TimeLimit, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, seconds: float) -> TimeLimit:
        """From now on the current task may take ``seconds``. Must be followed by :meth:`end`."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  calls are made in tasks
        limit = TimeLimit(task)
        self.watch(limit, seconds)
        return limit

    def watch(self, limit: TimeLimit, seconds: float) -> None:
        """Has ``limit`` strike then. Must be followed by :meth:`end` or :meth:`forget`."""
        limit.when = time.monotonic() + seconds
        if seconds < _OWN_TIMER_BELOW:
            limit.timer = asyncio.get_running_loop().call_later(seconds, limit.strike)
            return
        self._watched[limit] = None
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(TICK, self._look)

    def end(self, limit: TimeLimit) -> bool:
        """The work is over; whether a cancellation that reached it was this limit's and nobody else's. Once."""
        self.forget(limit)
        return limit.passed and limit.task.uncancel() <= limit.cancelling

    def forget(self, limit: TimeLimit) -> None:
        """It strikes no more."""
        if limit.timer is not None:
            limit.timer.cancel()
        else:
            self._watched.pop(limit, None)

    def _look(self) -> None:
        now = time.monotonic()
        for limit in [one for one in self._watched if one.when <= now]:
            del self._watched[limit]
            limit.strike()
        self._timer = asyncio.get_running_loop().call_later(TICK, self._look) if self._watched else None
