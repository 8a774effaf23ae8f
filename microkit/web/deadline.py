"""The time that a request may take, kept by one timer of the event loop."""

from __future__ import annotations

import asyncio
from typing import Final

from microkit.errors import DeadlineExceeded

GRACE: Final = 0.1
"""Seconds after the deadline at which the work is cancelled. What respects the deadline by itself (statements, calls to
other services) ends before, in better order than a cancellation in the middle."""


class Alarm:
    """Cancels the current task when the deadline is over. As ``asyncio.timeout``, at a third of its cost."""

    __slots__ = ("_cancelling", "_ended", "_handle", "_rang", "_task")

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        task = asyncio.current_task(loop)
        assert task is not None  # noqa: S101  requests run in tasks
        self._task = task
        self._cancelling = task.cancelling()
        self._rang = False
        self._ended = False
        self._handle = loop.call_later(seconds + GRACE, self._ring)

    def _ring(self) -> None:
        self._rang = True
        self._task.cancel()

    def off(self) -> None:
        """Ends it. Must be called, however the work ended."""
        self._handle.cancel()
        if self._rang and not self._ended:
            self._task.uncancel()
        self._ended = True

    def explain(self, error: asyncio.CancelledError) -> DeadlineExceeded | asyncio.CancelledError:
        """Ends it, and says what a cancellation was: the deadline, or one from outside."""
        self.off()
        if self._rang and self._task.cancelling() <= self._cancelling:
            return DeadlineExceeded("The request took longer than it may")
        return error


def allowed(timeout: float, header: bytes | None) -> float:
    """Seconds that a request may take: ``timeout``, or less where the caller waits less long (``Request-Timeout-Ms``).

    What is not a number of at most nine digits is ignored: a caller's clock can only make it shorter.
    """
    if header is None or len(header) > 9 or not header.isdigit():
        return timeout
    return min(timeout, int(header) / 1000)
