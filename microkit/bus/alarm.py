"""The time that attempts may take, watched by one timer for all workers of a group.

``asyncio.timeout`` costs five microseconds an attempt, a third of all that the runtime does for a message. Here an
attempt notes when it ends; and as all of a group may take equally long, one timer at the earliest end will do.
"""

from __future__ import annotations

import asyncio
import time


class Alarm:
    """The attempt under way in one worker: ``until`` is a reading of ``time.monotonic()``, 0 between attempts."""

    __slots__ = ("_struck", "_task", "until")

    def __init__(self, task: asyncio.Task[None]) -> None:
        self._task = task
        self._struck = False
        self.until = 0.0

    def strike(self) -> None:
        """Cancels what the worker waits for."""
        self.until = 0.0
        self._struck = True
        self._task.cancel()

    def over(self) -> bool:
        """Ends the attempt; whether its time was up. Else what was cancelled was not for us to cancel."""
        self.until = 0.0
        if not self._struck:
            return False
        self._struck = False
        self._task.uncancel()
        return True


class Watch:
    """Strikes the alarms of a group when their time is up. It has a timer only while there was an attempt lately."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._alarms: list[Alarm] = []
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0

    def alarm(self, task: asyncio.Task[None]) -> Alarm:
        """An alarm for a worker."""
        alarm = Alarm(task)
        self._alarms.append(alarm)
        return alarm

    def begin(self, alarm: Alarm, deadline: float | None = None) -> float:
        """Gives an attempt its time, until ``deadline`` at most; when that ends. :meth:`Alarm.over` must be called,
        however it ends."""
        now = time.monotonic()
        until = now + self._timeout
        if deadline is not None and deadline < until:
            until = deadline
            if self._timer is not None and until < self._due:
                self._timer.cancel()
                self._timer = None
        alarm.until = until
        if self._timer is None:
            self._look_at(until, now)
        return until

    def stop(self) -> None:
        """Forgets all alarms."""
        self._alarms.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        now = time.monotonic()
        for alarm in self._alarms:
            if 0 < alarm.until <= now:
                alarm.strike()
        if busy := [alarm.until for alarm in self._alarms if alarm.until]:
            self._look_at(min(busy), now)

    def _look_at(self, due: float, now: float) -> None:
        self._due = due
        self._timer = asyncio.get_running_loop().call_later(due - now, self._look)
