"""Local steps of several sagas in one transaction: one BEGIN, one statement for all their transitions, one COMMIT.

It is done where it harms nobody. Only steps that were quick so far share, one after the other; while some are carried
out the next ones gather, and nobody waits for company. If anything at all goes wrong, be it a refusal, an error, a lost
lease, a lock that takes long, then nothing of it stands, and each of them has a transaction of its own: so no saga is
rolled back twice for another, and no outcome was read from what a neighbour left and then took back.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from contextvars import Context, copy_context
from typing import Any, Final

from microkit.db import CommitUnknown, Database, Transaction
from microkit.saga.store import Held, LeaseLost, Transition, record_all
from microkit.saga.work import Work

MOST: Final = 16
"""Sagas in one transaction."""

QUICK: Final = 0.02
"""Seconds that a step may take, on average, to be one of them."""

# Seconds for all of them. It is well below PostgreSQL's deadlock_timeout, and ends what would wait for a lock.
_LONGEST: Final = 0.25
_LANES: Final = 2
_WEIGHT: Final = 0.2
# Of a step that is asked to be done within less than this the place in a queue would be too much.
_SHORTEST_TIMEOUT: Final = 1.0


class _DisturbedError(Exception):
    """Nothing of the shared transaction stands, and for whose sake is not said."""


class _Entry:
    __slots__ = ("context", "future", "work")

    def __init__(self, work: Work) -> None:
        self.work = work
        self.context: Context = copy_context()
        self.future: asyncio.Future[Held | Exception | None] = asyncio.get_running_loop().create_future()

    def tell(self, result: Held | Exception | None) -> None:
        if not self.future.done():
            self.future.set_result(result)


class LocalSteps:
    """Carries out local attempts of one engine."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._seconds: dict[Any, float] = {}
        self._waiting: deque[_Entry] = deque()
        self._lanes = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._most = MOST

    async def carry(self, work: Work) -> Held | None:
        """Calls the step and moves the saga on, in one transaction. Returns the saga if it goes on at once.

        Raises:
            LeaseLost: nothing is committed.
            Exception: as the step raised it, or the database; nothing is committed, unless it is ``CommitUnknown``.
        """
        quick = self._seconds.get(_kind(work), QUICK) < QUICK
        if not quick or work.attempt.step.timeout < _SHORTEST_TIMEOUT:
            return await self._alone(work)
        entry = _Entry(work)
        self._waiting.append(entry)
        if self._lanes < _LANES:
            self._lanes += 1
            lane = asyncio.get_running_loop().create_task(self._carry_on(), context=Context())
            self._tasks.add(lane)
            lane.add_done_callback(self._tasks.discard)
        result = await entry.future
        if isinstance(result, _DisturbedError):
            return await self._alone(work)
        if isinstance(result, Exception):
            raise result
        return result

    async def _alone(self, work: Work) -> Held | None:
        async def unit(tx: Transaction) -> Held | None:
            began = time.perf_counter()
            try:
                return await work.effect_and_progress(tx)
            finally:
                self._took(work, time.perf_counter() - began)

        return await self._database.run(unit)

    def _took(self, work: Work, seconds: float) -> None:
        kind = _kind(work)
        before = self._seconds.get(kind, QUICK)  # the first one is on trial
        late = seconds > _LONGEST / 2  # one is enough to keep it away from the others for a while
        self._seconds[kind] = seconds if late else before + _WEIGHT * (seconds - before)

    async def _carry_on(self) -> None:
        try:
            while batch := self._next():
                await self._together(batch)
        finally:
            self._lanes -= 1

    def _next(self) -> list[_Entry]:
        batch: list[_Entry] = []
        while self._waiting and len(batch) < self._most:
            entry = self._waiting.popleft()
            if not entry.future.done():  # whoever waited for it may have been cancelled
                batch.append(entry)
        return batch

    async def _together(self, batch: Sequence[_Entry]) -> None:
        alarm = asyncio.timeout(_LONGEST)

        async def unit(tx: Transaction) -> list[Held | None]:
            async with alarm:  # not around the COMMIT: one that is cut off may stand all the same
                return await self._unit(tx, batch)

        try:
            results = await self._database.run(unit, attempts=1)
        except CommitUnknown:
            for entry in batch:
                entry.tell(CommitUnknown())
        except Exception as error:  # noqa: BLE001  whose it is, each of them hears when it is alone
            if len(batch) == 1 and not alarm.expired():
                batch[0].tell(error)
                return
            self._most = max(1, self._most // 2)
            for entry in batch:
                entry.tell(_DisturbedError())
        else:
            self._most = min(MOST, self._most + 1)
            for entry, result in zip(batch, results, strict=True):
                entry.tell(result)

    async def _unit(self, tx: Transaction, batch: Sequence[_Entry]) -> list[Held | None]:
        transitions = []
        for entry in batch:
            began = time.perf_counter()
            try:
                transitions.append(await _progress(tx, entry))
            finally:
                self._took(entry.work, time.perf_counter() - began)
        results: list[Held | None] = []
        for written in await record_all(tx, transitions):
            if isinstance(written, LeaseLost):
                raise written
            results.append(written)
        return results


async def _progress(tx: Transaction, entry: _Entry) -> Transition:
    """The step of one, in the context of its saga: its span, its deadline. It ends when its saga is taken away."""
    task = asyncio.get_running_loop().create_task(entry.work.progress(tx), context=entry.context)

    def stop(_: object) -> None:
        task.cancel()

    entry.future.add_done_callback(stop)
    try:
        await asyncio.wait({task})
    except asyncio.CancelledError:
        task.cancel()
        await asyncio.wait({task}, timeout=1.0)
        raise
    finally:
        entry.future.remove_done_callback(stop)
    if task.cancelled() or entry.future.done():
        raise _DisturbedError
    return task.result()


def _kind(work: Work) -> tuple[str, str, str]:
    return work.held.fingerprint, work.held.step, work.held.direction
