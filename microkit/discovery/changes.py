"""The newest known instances of one service, and telling those who wait for the next."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from microkit.discovery.port import Endpoint


class Latest:
    """The instances of one service. :attr:`endpoints` stays the same tuple until they change."""

    def __init__(self, endpoints: Iterable[Endpoint] = ()) -> None:
        self.endpoints: tuple[Endpoint, ...] = tuple(endpoints)
        self._changed = asyncio.Event()

    def set(self, endpoints: Iterable[Endpoint]) -> bool:
        """Takes the new state; whether it differs from the last."""
        new = tuple(endpoints)
        if new == self.endpoints:
            return False
        self.endpoints = new
        self._changed.set()  # wakes those who wait for this change; who comes now waits for the next
        self._changed = asyncio.Event()
        return True

    async def next(self) -> None:
        """Waits for the next change."""
        await self._changed.wait()


class Changes:
    """What a watcher reads: the newest state first, then each change that it is quick enough to see."""

    def __init__(self, latest: Latest) -> None:
        self._latest = latest
        self._told: Sequence[Endpoint] | None = None

    def __aiter__(self) -> Changes:
        return self

    async def __anext__(self) -> Sequence[Endpoint]:
        while self._told is self._latest.endpoints:
            await self._latest.next()
        self._told = self._latest.endpoints
        return self._told
