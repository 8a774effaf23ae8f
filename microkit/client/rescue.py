"""An attempt that nobody answers: the question is put to another instance while there is time for an answer.

A network that swallows everything says nothing, so a call into it would last until its deadline. Half-way there a
second attempt is made beside the first, where that does no harm and another instance can be called. The first is not
given up: it may only be slow, and a time-out of its own would make operations fail that take more than half of their
time. Whichever is good first counts.

The first attempt stays in the caller's task, and its time is watched by the timer that all calls share: to be prepared
costs a call two microseconds, a task for each attempt would cost fifteen.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import copy_context
from typing import Any, Generic, TypeVar

from microkit.resilience.time_limit import TimeLimit, TimeLimits

T = TypeVar("T")


class Rescue(TimeLimit, Generic[T]):
    """``second`` begins another attempt, or gives ``None`` where there may be none; ``good`` tells whether what an
    attempt came to ends the call; ``given_up`` is called before the first is cancelled, because the second was good."""

    __slots__ = ("_context", "_given_up", "_good", "_over", "_second", "_task")

    def __init__(
        self,
        second: Callable[[], Coroutine[Any, Any, T] | None],
        *,
        good: Callable[[T], bool],
        given_up: Callable[[], None],
    ) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  calls are made in tasks
        super().__init__(task)
        self._second = second
        self._good = good
        self._given_up = given_up
        self._context = copy_context()
        self._task: asyncio.Task[T] | None = None
        self._over = False

    async def run(self, first: Callable[[], Awaitable[T]], limits: TimeLimits, after: float) -> T:
        """What ``first()`` comes to, or a second attempt that was begun ``after`` so many seconds."""
        limits.watch(self, after)
        try:
            try:
                found = await first()
            except asyncio.CancelledError:
                if limits.end(self) and self._task is not None:
                    return self._task.result()
                raise
            if self._task is None or self._good(found):
                return found
            other = await self._other()
            return found if other is None or not self._good(other) else other
        finally:
            self._over = True
            limits.forget(self)
            await self._end()

    def strike(self) -> None:
        """It is time for the second attempt."""
        if self._over or (coroutine := self._second()) is None:
            return
        self._task = asyncio.get_running_loop().create_task(coroutine, context=self._context)
        self._task.add_done_callback(self._arrived)

    def _arrived(self, second: asyncio.Task[T]) -> None:
        if second.cancelled() or second.exception() is not None or self._over or not self._good(second.result()):
            return
        self._given_up()
        super().strike()

    async def _other(self) -> T | None:
        """What the second attempt comes to, now that the first has failed; ``None`` where it fails, too."""
        assert self._task is not None  # noqa: S101  asked for where there is one
        self._over = True  # nobody is to be cancelled any more
        await asyncio.wait([self._task])
        return None if self._task.cancelled() or self._task.exception() is not None else self._task.result()

    async def _end(self) -> None:
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task])
