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

    def alarm(self, task: asyncio.Task[None]) -> Alarm:
        """An alarm for a worker."""
        alarm = Alarm(task)
        self._alarms.append(alarm)
        return alarm

    def begin(self, alarm: Alarm) -> float:
        """Gives an attempt its time; its deadline. :meth:`Alarm.over` must be called, however it ends."""
        alarm.until = until = time.monotonic() + self._timeout
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._timeout, self._look)
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
            self._timer = asyncio.get_running_loop().call_later(min(busy) - now, self._look)
