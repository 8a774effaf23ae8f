"""Hedging: when an answer is late, the question is put a second time, and the first answer counts.

After Dean and Barroso, "The Tail at Scale" (2013): asked again after the 95th percentile, a twentieth more calls
shorten the tail much.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

T = TypeVar("T")

_KEPT: Final = 256
_ENOUGH: Final = 50
_LEAST: Final = 0.001


class Latency:
    """The 95th percentile of the last 256 times, worked out anew every 32."""

    __slots__ = ("_p95", "_seen", "_times")

    def __init__(self) -> None:
        self._times: list[float] = []
        self._seen = 0
        self._p95 = math.inf

    def add(self, seconds: float) -> None:
        """One more."""
        if len(self._times) < _KEPT:
            self._times.append(seconds)
        else:
            self._times[self._seen % _KEPT] = seconds
        self._seen += 1
        if self._seen >= _ENOUGH and self._seen % 32 == 0:
            self._p95 = max(_LEAST, sorted(self._times)[int(len(self._times) * 0.95)])

    @property
    def p95(self) -> float:
        """Seconds; infinite before fifty are known."""
        return self._p95


async def hedged(
    first: Callable[[], Coroutine[Any, Any, T]],
    second: Callable[[], Coroutine[Any, Any, T]],
    *,
    after: float,
    allowed: Callable[[], bool],
    good: Callable[[T], bool],
) -> tuple[T, bool | None]:
    """What ``first()`` comes to, or where it has not come ``after`` so many seconds and a second is ``allowed``, the
    first ``good`` one of the two; the other is cancelled. Beside it whether the second won, ``None`` where there was
    none."""
    tasks = [asyncio.create_task(first())]
    try:
        await asyncio.wait(tasks, timeout=None if math.isinf(after) else after)
        if tasks[0].done() or not allowed():
            return await tasks[0], None
        tasks.append(asyncio.create_task(second()))
        done, late = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        winner = next((task for task in done if task.exception() is None and good(task.result())), None)
        if winner is None:
            if late:
                await asyncio.wait(late)
            winner = next((task for task in tasks if task.exception() is None and good(task.result())), tasks[0])
        return await winner, winner is tasks[1]
    finally:
        over = [task for task in tasks if not task.done()]
        for task in over:
            task.cancel()
        if over:
            await asyncio.wait(over)
        for task in tasks:
            if task.done() and not task.cancelled():
                task.exception()  # seen
