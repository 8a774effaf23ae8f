"""Request collapsing: equal questions that are asked at once are asked once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class _Shared(Generic[T]):
    __slots__ = ("task", "waiting")

    def __init__(self, task: asyncio.Task[T]) -> None:
        self.task = task
        self.waiting = 0


class Collapser(Generic[T]):
    """Who asks while the same is being asked waits for that answer. Nothing is kept once it has come."""

    def __init__(self) -> None:
        self._under_way: dict[Hashable, _Shared[T]] = {}

    def joins(self, key: Hashable) -> bool:
        """Whether ``key`` is being asked now."""
        return key in self._under_way

    async def share(self, key: Hashable, ask: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The answer to ``key``: of ``ask()``, unless it is being asked already.

        ``ask`` runs in a task of its own, with the context of who came first; it is cancelled when the last who waits
        for it is. What it raises is raised to all.
        """
        shared = self._under_way.get(key)
        if shared is None:
            shared = self._under_way[key] = _Shared(asyncio.create_task(ask()))
            shared.task.add_done_callback(lambda _, mine=shared: self._forget(key, mine))  # type: ignore[misc]
        shared.waiting += 1
        try:
            return await asyncio.shield(shared.task)
        finally:
            shared.waiting -= 1
            if not shared.waiting and not shared.task.done():
                self._forget(key, shared)  # who comes now must not wait for what is being cancelled
                shared.task.cancel()

    def _forget(self, key: Hashable, shared: _Shared[T]) -> None:
        if self._under_way.get(key) is shared:
            del self._under_way[key]
        if shared.task.done() and not shared.task.cancelled():
            shared.task.exception()  # seen, even where everybody has left
