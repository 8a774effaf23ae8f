"""Runs the sagas that this process holds: one attempt after another, until a saga ends, waits or is lost to another.

A local step commits its effect and the saga's progress in one transaction. Of a step that acts elsewhere the intent
is on record before it begins (the attempt was counted by the claim, or by the transition before it), and the outcome
after it.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from opentelemetry.trace import Span

from microkit.context import working
from microkit.db import CommitUnknown, Database, DatabaseUnavailable
from microkit.saga import leases
from microkit.saga.binding import BoundSaga
from microkit.saga.conclude import conclude_and_progress
from microkit.saga.gathering import Gathering
from microkit.saga.metrics import SagaMetrics
from microkit.saga.progress import DONE, Ended, Outcome
from microkit.saga.store import Held, LeaseLost, Transition
from microkit.saga.tables import Direction, Status
from microkit.saga.together import LocalSteps
from microkit.saga.trying import insist, tried
from microkit.saga.work import Unfit, Work
from microkit.saga.writer import TransitionWriter
from microkit.telemetry import Telemetry
from microkit.telemetry.propagation import extract

# Longest pause, in seconds, before a database that is away is asked again.
_LONGEST_PAUSE = 2.0


class Runner:
    """Carries out attempts under the leases of ``owner``. ``due_in`` is told in how many seconds a retry is due."""

    def __init__(
        self,
        database: Database,
        telemetry: Telemetry,
        sagas: Mapping[str, BoundSaga],
        metrics: SagaMetrics,
        writer: TransitionWriter,
        *,
        owner: str,
        due_in: Callable[[float], None],
    ) -> None:
        self._database = database
        self._telemetry = telemetry
        self._sagas = sagas
        self._metrics = metrics
        self._writer = writer
        self._local = LocalSteps(database)
        self._groups = Gathering(database, telemetry, metrics, owner=owner)
        self._owner = owner
        self._due_in = due_in
        self._log = telemetry.logger.getChild("saga")
        self.stopping = False
        """Once set, a saga is left at its next transition."""

    async def run(self, held: Held) -> Held | None:
        """Carries ``held`` as far as it goes. What is returned is still held, its next attempt not begun."""
        bound = self._sagas[held.fingerprint]
        now: Held | None = held
        try:
            while now is not None and not (self.stopping and now is not held):
                now = await self._advance(Work(bound, now))
        except LeaseLost:
            self._log.warning("saga is no longer ours", extra={"saga": held.name, "saga_id": str(held.id)})
            return None
        return now

    async def _advance(self, work: Work) -> Held | None:
        """One attempt and its transition. Returns the saga if it goes on at once."""
        carried = work.held.context
        parent = extract(carried.get("traceparent"), carried.get("tracestate"))
        began = time.perf_counter()
        with (
            self._telemetry.span(work.title, attributes=work.attributes, parent=parent) as span,
            working(work.context),
        ):
            try:
                outcome, now = await self._attempt(work, span)
            except Unfit as error:
                await self._park(work, str(error))
                return None
        self._metrics.attempted(work, outcome, time.perf_counter() - began)
        return now

    async def _attempt(self, work: Work, span: Span) -> tuple[Outcome, Held | None]:
        if work.attempt.number > work.retry.attempts:
            reason = "the process ended during the attempts before"
            outcome = Outcome(Ended.LOST, reason, own=work.awaits is not None)
            return outcome, await self._record(work, outcome, work.held.state)
        if work.is_undecided:
            if not work.is_needed():
                return Outcome(Ended.SKIPPED), await self._skip(work)
            if not work.attempt.local:  # what is asked elsewhere is asked on record
                work = Work(work.bound, await insist(self._database, work.decide))
        if work.attempt.step.branches:
            transition, now = await self._groups.carry(work)
            self._tell(work, transition)
            return transition.outcome, now
        if work.attempt.local:
            return await self._attempt_here(work, span)
        outcome, state = await tried(work, span, self._log, lambda: work.effect(None))
        return outcome, await self._record(work, outcome, state if outcome is DONE else work.held.state)

    async def _attempt_here(self, work: Work, span: Span) -> tuple[Outcome, Held | None]:
        outcome, came = await tried(work, span, self._log, lambda: self._locally(work))
        if came is not None:
            transition, now = came
            self._tell(work, transition)
            return transition.outcome, now
        outcome = work.doubted(outcome)
        # Cut off at the wrong moment it was committed all the same.
        reloaded = await self._reloaded(work)
        if reloaded.seq > work.held.seq:
            return DONE, reloaded
        return outcome, await self._record(work, outcome, work.held.state)

    async def _locally(self, work: Work) -> tuple[Transition, Held | None]:
        """A database that is away, or has no connection free, is nothing that the step did: it waits, for its time."""
        pause = 0.05
        while True:
            try:
                if (awaits := work.awaits) is not None:
                    return await self._database.run(partial(conclude_and_progress, work=work, awaits=awaits))
                return work.transition(DONE, None), await self._local.carry(work)
            except DatabaseUnavailable:
                await asyncio.sleep(random.uniform(0, pause))  # noqa: S311  full jitter, no secret
            pause = min(_LONGEST_PAUSE, pause * 2)

    async def _skip(self, work: Work) -> Held | None:
        return await self._written(work, partial(insist, self._database, work.skip))

    async def _record(self, work: Work, outcome: Outcome, state: Any) -> Held | None:
        """Writes the outcome, for as long as the lease lasts. Returns the saga if it goes on at once."""
        transition = work.transition(outcome, state)

        async def write() -> tuple[Transition, Held | None]:
            return transition, await self._writer.write(transition)

        return await self._written(work, write)

    async def _written(self, work: Work, write: Callable[[], Awaitable[tuple[Transition, Held | None]]]) -> Held | None:
        """Writes until it is known to stand: a COMMIT without an answer may have been carried out."""
        while True:
            try:
                transition, now = await write()
            except CommitUnknown:
                reloaded = await self._reloaded(work)
                if reloaded.seq > work.held.seq:
                    return reloaded
            else:
                self._tell(work, transition)
                return now

    async def _reloaded(self, work: Work) -> Held:
        held = await insist(
            self._database, lambda tx: leases.reload(tx, owner=self._owner, held=work.held), read_only=True
        )
        if held is None:
            raise LeaseLost
        return held

    async def _park(self, work: Work, reason: str) -> None:
        await insist(self._database, lambda tx: leases.park(tx, held=work.held, reason=reason))
        self._metrics.ended(work.held.name, Status.STUCK)
        self._log.error("saga is stuck: %s", reason, extra=work.attributes)

    def _tell(self, work: Work, transition: Transition) -> None:
        move = transition.move
        if transition.attempt.direction is Direction.ACTION and move.direction is Direction.UNDO:
            self._metrics.turned_back(work.saga.name, work.attempt.step.name)
        if move.wait is not None:
            if not move.goes_on:
                self._due_in(move.wait)
            return
        self._metrics.ended(work.saga.name, move.status)
        if move.status is Status.STUCK:
            self._log.error("saga is stuck: %s", move.error, extra=work.attributes)
        else:
            self._log.info("saga %s", move.status, extra=work.attributes)
