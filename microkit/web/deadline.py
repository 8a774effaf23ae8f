"""The time that requests may take, watched by one timer for all of them.

A timer for each request costs three to ten microseconds (``asyncio.timeout``, or ``call_later`` of uvloop, whose timers
are closed one by one by the loop). Noting a deadline in a dictionary costs a tenth of one.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

from microkit.errors import DeadlineExceeded, Problem, RequestTimeout
from microkit.web.call import Call

TICK: Final = 0.05
"""Seconds between two looks at the deadlines of all requests under way.

A request is cancelled one to two of these after its deadline. What respects the deadline by itself (statements, calls
to other services) ends before, in better order than a cancellation in the middle.
"""


class Deadline:
    """The deadline of one call in its task, a reading of ``time.monotonic()``."""

    __slots__ = ("_call", "_cancelling", "_passed", "_stalled", "_task", "when")

    def __init__(self, call: Call, task: asyncio.Task[object], when: float) -> None:
        self.when = when
        self._call = call
        self._stalled = False
        self._task = task
        self._cancelling = task.cancelling()
        self._passed = False

    def strike(self) -> None:
        """Cancels the task."""
        self._passed = True
        self._stalled = self._call.waits_for_client
        self._task.cancel()

    def over(self) -> None:
        """Takes the cancellation back, once the work has ended."""
        if self._passed:
            self._task.uncancel()

    def explain(self, error: asyncio.CancelledError) -> Problem | asyncio.CancelledError:
        """What a cancellation was: this deadline, or one that came from outside as well.

        Where it was the client that kept us waiting for its body, it is the client's 408. The rest of the body may
        never come, so the connection ends.
        """
        if not self._passed or self._task.cancelling() > self._cancelling + 1:
            return error
        if self._stalled:
            return RequestTimeout("The body stopped coming", headers={"connection": "close"})
        return DeadlineExceeded("The request took longer than it may")


class Watch:
    """Cancels the requests whose deadline is over. It has a timer only while there are any."""

    def __init__(self) -> None:
        self._deadlines: dict[Deadline, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, call: Call, when: float) -> Deadline:
        """Watches the current task, which answers ``call``, until :meth:`end`."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  requests run in tasks
        deadline = Deadline(call, task, when)
        self._deadlines[deadline] = None
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(TICK, self._look)
        return deadline

    def end(self, deadline: Deadline) -> None:
        """Must be called, however the work ended."""
        self._deadlines.pop(deadline, None)
        deadline.over()

    def _look(self) -> None:
        self._timer = None
        late = time.monotonic() - TICK
        for deadline in [one for one in self._deadlines if one.when <= late]:
            del self._deadlines[deadline]
            deadline.strike()
        if self._deadlines:
            self._timer = asyncio.get_running_loop().call_later(TICK, self._look)


def allowed(timeout: float, header: bytes | None) -> float:
    """Seconds that a request may take: ``timeout``, or less where the caller waits less long (``Request-Timeout-Ms``).

    What is not a number of at most nine digits is ignored: a caller's clock can only make it shorter.
    """
    if header is None or len(header) > 9 or not header.isdigit():
        return timeout
    return min(timeout, int(header) / 1000)
