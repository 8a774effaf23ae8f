"""What a bus that keeps nothing has been given and has not settled yet.

Those rows stay pending in the table: after a crash they are published again by whoever comes next. That this relay has
published them already is remembered here, in memory alone, because it is true only as long as the bus lives.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final

from microkit.bus.letter import settlement_of
from microkit.bus.port import Bus, Settles
from microkit.outbox.queue import Row

GATHER: Final = 0.05
"""Seconds in which acknowledgements are gathered before they are written; nothing waits for them."""


class Unsettled:
    """The rows on their way, at most ``most`` of them. ``wake`` is called when there is something to write.

    With a bus that keeps what it confirmed it is always empty, and :attr:`keeps` is true.
    """

    def __init__(self, bus: Bus, source: str, most: int, wake: Callable[[], None]) -> None:
        self._bus = bus if isinstance(bus, Settles) else None
        self._source = source
        self._most = most
        self._wake = wake
        self._rows: dict[str, Row] = {}
        self._settled: dict[str, Row] = {}
        self._forget: Callable[[], None] | None = None

    @property
    def keeps(self) -> bool:
        """Whether the bus keeps what it confirmed, so that a row is done when it is published."""
        return self._bus is None

    @property
    def full(self) -> bool:
        return len(self._rows) >= self._most

    @property
    def seqs(self) -> list[int]:
        return [row.seq for row in self._rows.values()]

    @property
    def shards(self) -> set[int]:
        return {row.shard for row in self._rows.values()}

    def listen(self) -> None:
        """Begins to hear what the bus settles."""
        if self._bus is not None:
            self._forget = self._bus.on_settled(self._source, self._hear)

    def deafen(self) -> None:
        """Hears no more."""
        if self._forget is not None:
            self._forget()

    def add(self, rows: Iterable[Row]) -> None:
        """Rows about to be published: they may be settled before ``publish`` returns."""
        if self._bus is not None:
            self._rows.update((_name(row), row) for row in rows)

    def remove(self, rows: Iterable[Row]) -> None:
        """Rows that were not published after all, or whose settling is written."""
        for row in rows:
            self._rows.pop(_name(row), None)
            self._settled.pop(_name(row), None)

    def leave(self, shards: Collection[int]) -> None:
        """Another relay has these shards, or had them: what is under way there is its business."""
        self.remove([row for row in self._rows.values() if row.shard in shards])

    def settled(self) -> list[Row]:
        """What every group has acknowledged and is not written yet."""
        return list(self._settled.values())

    def _hear(self, ids: Sequence[str]) -> None:
        first = not self._settled
        self._settled.update((name, row) for name in ids if (row := self._rows.get(name)) is not None)
        if first and self._settled:
            asyncio.get_running_loop().call_later(GATHER, self._wake)


def _name(row: Row) -> str:
    return settlement_of(row.message)[1]
