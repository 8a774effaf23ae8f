"""Transitions of many sagas, written together.

While one batch is on its way to the disk the next one gathers: no transition waits for others to come, and the more
sagas are under way, the more of them share one statement and one COMMIT. Each still has its own fate: a saga that lost
its lease is told so, a transition that the database refuses fails alone, and a row that somebody keeps locked holds up
the others for a moment only.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Sequence
from contextvars import Context
from typing import Final

from microkit.context import deadline_within
from microkit.db import CommitUnknown, Database, is_transient
from microkit.errors import DeadlineExceeded
from microkit.saga.store import Held, Transition, record_all

MOST: Final = 64
"""Transitions in one statement."""

_LANES: Final = 4
# Seconds after which a batch is held up by something, and a second one need not wait for it.
_HELD_UP: Final = 0.1
# Seconds that a batch may take before its transitions are written one by one, each of which may take this long again.
_LONGEST: Final = 5.0
_LONGEST_PAUSE: Final = 2.0


class _Entry:
    __slots__ = ("future", "since", "transition")

    def __init__(self, transition: Transition, future: asyncio.Future[Held | Exception | None]) -> None:
        self.transition = transition
        self.future = future
        self.since = time.monotonic()

    def tell(self, result: Held | Exception | None) -> None:
        if not self.future.done():  # whoever waited for it may have been cancelled
            self.future.set_result(result)


class TransitionWriter:
    """Writes the transitions of one engine. It needs no task of its own while there is nothing to write."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: deque[_Entry] = deque()
        self._alone: deque[_Entry] = deque()
        self._under_way: set[_Entry] = set()
        self._lanes: set[asyncio.Task[None]] = set()
        self._alone_under_way = 0
        self._alone_first = False
        self._pause = 0.0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def lag(self) -> float:
        """Seconds that the oldest transition has waited to be written, 0 where none does: the database is slow."""
        oldest = min((each.since for each in (*self._waiting, *self._alone, *self._under_way)), default=None)
        return 0.0 if oldest is None else time.monotonic() - oldest

    async def write(self, transition: Transition) -> Held | None:
        """Writes it, however long the database is away: who cannot wait cancels. See ``store.record``.

        Raises:
            LeaseLost: nothing is written.
            CommitUnknown: it may be written or not.
        """
        entry = _Entry(transition, asyncio.get_running_loop().create_future())
        self._waiting.append(entry)
        self._open_lane()
        result = await entry.future
        if isinstance(result, Exception):
            raise result
        return result

    async def close(self) -> None:
        """Ends what is on its way. Call it when nobody writes any more."""
        if self._timer is not None:
            self._timer.cancel()
        for lane in self._lanes:
            lane.cancel()
        if self._lanes:
            await asyncio.wait(self._lanes, timeout=10)

    def _open_lane(self) -> None:
        if not self._lanes:
            self._start_lane()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_HELD_UP, self._look_after)

    def _look_after(self) -> None:
        """Opens another lane where those there are have been held up."""
        self._timer = None
        if not self._waiting and not self._alone:
            return
        now = time.monotonic()
        since = min((each.since for each in (*self._waiting, *self._alone)), default=now)
        if len(self._lanes) < _LANES and now - since >= _HELD_UP / 2:
            self._start_lane()
        self._open_lane()

    def _start_lane(self) -> None:
        # In a context of its own: neither the span nor the deadline of the step that happens to be first.
        lane = asyncio.get_running_loop().create_task(self._write_on(), context=Context())
        self._lanes.add(lane)

    async def _write_on(self) -> None:
        lane = asyncio.current_task()
        try:
            while batch := self._next():
                self._under_way.update(batch)
                try:
                    await self._write(batch)
                finally:
                    self._under_way.difference_update(batch)
                if self._pause:
                    await asyncio.sleep(random.uniform(0, self._pause))  # noqa: S311  full jitter, no secret
        finally:  # at once, so that what comes now does not count on it
            self._lanes = {other for other in self._lanes if other is not lane}

    def _next(self) -> list[_Entry]:
        """What to write next: those that have to go alone and the others take turns."""
        self._alone_first = not self._alone_first
        queues = (self._alone, self._waiting) if self._alone_first else (self._waiting, self._alone)
        for queue in queues:
            if queue is self._alone and len(self._lanes) > 1 and self._alone_under_way >= _LANES - 1:
                continue  # one lane is for those that nothing is wrong with
            batch: list[_Entry] = []
            while queue and len(batch) < (1 if queue is self._alone else MOST):
                entry = queue.popleft()
                if not entry.future.done():
                    batch.append(entry)
            if batch:
                return batch
        return []

    async def _write(self, batch: Sequence[_Entry]) -> None:
        transitions = [entry.transition for entry in batch]
        alone = len(batch) == 1
        self._alone_under_way += alone
        try:
            with deadline_within(_LONGEST):
                written = await self._database.run(lambda tx: record_all(tx, transitions, alone=True), attempts=1)
        except CommitUnknown:
            for entry in batch:
                entry.tell(CommitUnknown())
        except DeadlineExceeded:  # one of them is held up, and nobody knows which
            self._alone.extend(batch)
        except Exception as error:  # noqa: BLE001  whatever it is, they are told
            if is_transient(error):
                self._waiting.extendleft(reversed(batch))
                self._pause = min(_LONGEST_PAUSE, max(0.05, self._pause * 2))
            elif alone:
                batch[0].tell(error)
            else:
                self._alone.extend(batch)
        else:
            self._pause = 0.0
            for entry, result in zip(batch, written, strict=True):
                entry.tell(result)
        finally:
            self._alone_under_way -= alone
