"""Carries out the branches of a parallel group at once, under one lease.

A branch of this database commits its effect with its own progress. Of one elsewhere the intent is on record before it
begins, and its outcome after it. When all have come to an end, or none can go on, the group as a whole moves the saga.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from functools import partial
from typing import Any

from opentelemetry.trace import Span
from sqlalchemy import RowMapping

from microkit.context import working
from microkit.db import CommitUnknown, Database, Transaction
from microkit.saga import branches, leases
from microkit.saga.branches import OPEN, Branch, Stage, branch_after
from microkit.saga.conclude import conclude
from microkit.saga.metrics import SagaMetrics
from microkit.saga.progress import DONE, Ended, Move, Outcome, after, turn_back
from microkit.saga.step import Failure, Step, StepKind
from microkit.saga.store import Held, LeaseLost, Transition, record
from microkit.saga.tables import Direction, Status
from microkit.saga.trying import insist, tried
from microkit.saga.waits import place_of
from microkit.saga.work import Unfit, Work
from microkit.telemetry import Telemetry


class _Group:
    """A group under way: how far its branches are, and the number of the last transition."""

    def __init__(self, work: Work, known: dict[str, Branch]) -> None:
        self.work = work
        self.held = work.held
        self.step = work.attempt.step
        self.known = known
        self.seq = work.held.seq
        self.todo = [Work(work.bound, work.held, each, self._number(each)) for each in self._open()]

    def stage(self, branch: Step) -> Branch | None:
        return self.known.get(place_of(branch.name, self.held.direction))

    def _number(self, branch: Step) -> int:
        now = self.stage(branch)
        return 1 if now is None else now.attempts + 1

    def _open(self) -> list[Step]:
        if self.held.direction is Direction.UNDO:
            return [each for each in self.undone() if self._is_due(each)]
        if self.refusal() is not None:
            return []
        return [each for each in self.step.branches if self._is_due(each)]

    def _is_due(self, branch: Step) -> bool:
        now = self.stage(branch)
        return now is None or (now.stage in OPEN and not now.is_put_off)

    def undone(self) -> list[Step]:
        """The branches that are to be undone: what happened, or may have."""
        return [
            each
            for each in self.step.branches
            if each.undo is not None and (did := self.known.get(each.name)) is not None and did.happened
        ]

    def refusal(self) -> Step | None:
        """The branch for which the saga turns back."""
        if self.step.kind is StepKind.RETRIABLE or self.held.direction is Direction.UNDO:
            return None
        for each in self.step.branches:
            if (now := self.stage(each)) is not None and now.stage in (Stage.REFUSED, Stage.GIVEN_UP):
                return each
        return None

    def state(self) -> Any:
        """The state with what the branches have changed.

        Raises:
            Unfit: two have changed the same field.
        """
        return merged(self.held.state, self.step, self.known, self.held.direction)

    def verdict(self) -> Transition:
        """Where the saga goes now.

        Raises:
            Unfit: two branches have changed the same field.
        """
        held = replace(self.held, seq=self.seq)
        attempt, saga = self.work.attempt, self.work.saga
        refused = self.refusal()
        if refused is not None and (why := self.stage(refused)) is not None:
            reason = why.reason or "it was refused"
            ended = Ended.REFUSED if why.stage is Stage.REFUSED else Ended.FAILED
            if why.stage is Stage.GIVEN_UP:
                reason = f"gave up after {why.attempts} attempts: {reason}"
            move = turn_back(saga, attempt, Failure(refused.name, reason, why.type), own=bool(self.undone()))
            return Transition(held, attempt, Outcome(ended, f"{refused.name}: {reason}", why.type), move, self.state())
        mine = self.undone() if held.direction is Direction.UNDO else self.step.branches
        stages = [(each, now) for each in mine if (now := self.stage(each)) is not None]
        still = [now for _, now in stages if now.stage in OPEN]
        if still:
            reasons = "; ".join(now.reason for now in still if now.reason)
            wait = min(now.delay or 0.001 for now in still)
            outcome = Outcome(Ended.WAITING, reasons, again_after=wait)
            return Transition(held, attempt, outcome, after(saga, attempt, outcome), held.state)
        given_up = next(((each, now) for each, now in stages if now.stage in (Stage.GIVEN_UP, Stage.REFUSED)), None)
        if given_up is not None:
            error = f"{given_up[0].name}: {given_up[1].reason}"
            move = Move(Status.STUCK, held.direction, self.step.name, None, attempt.failure, error)
            return Transition(held, attempt, Outcome(Ended.FAILED, error), move, held.state)
        return Transition(held, attempt, DONE, after(saga, attempt, DONE), self.state())


def merged(state: Any, step: Step, known: dict[str, Branch], direction: Direction) -> Any:
    """``state`` with what the branches of a group have changed, field by field.

    Raises:
        Unfit: two have changed the same field.
    """
    left: dict[str, str] = {}
    together = dict(state)
    for each in step.branches:
        now = known.get(place_of(each.name, direction))
        for field, value in ((now.changes if now is not None else None) or {}).items():
            if field in left:
                raise Unfit(f"{left[field]} and {each.name}, branches of one group, have both changed {field!r}")
            left[field] = each.name
            together[field] = value
    return together


async def merged_so_far(tx: Transaction, row: RowMapping, step: Step) -> Any:
    """The state of a saga that is at a group, with what its branches have changed so far."""
    return merged(row["state"], step, await branches.load(tx, row["id"]), Direction(row["direction"]))


async def count_as_done(tx: Transaction, row: RowMapping, step: Step) -> Any:
    """An operator skips a group: branches that have not ended count as done. Returns the state as it is then."""
    direction = Direction(row["direction"])
    known = await branches.load(tx, row["id"])
    places = [place_of(each.name, direction) for each in step.branches]
    ended = {place for place in places if place in known and known[place].stage in (Stage.DONE, Stage.SKIPPED)}
    await branches.write(tx, row["id"], {place: Branch(Stage.DONE, 1, True) for place in places if place not in ended})
    return merged(row["state"], step, known, direction)


class Gathering:
    """Carries out groups under the leases of ``owner``."""

    def __init__(self, database: Database, telemetry: Telemetry, metrics: SagaMetrics, *, owner: str) -> None:
        self._database = database
        self._telemetry = telemetry
        self._metrics = metrics
        self._owner = owner
        self._log = telemetry.logger.getChild("saga")

    async def carry(self, work: Work) -> tuple[Transition, Held | None]:
        """One round of a group. Returns its transition and the saga, if it goes on at once.

        Raises:
            LeaseLost: it was lost.
            Unfit: the state does not fit its model, or what branches changed does not go together.
        """
        held = work.held
        work.state()  # whether it fits
        known = await insist(self._database, lambda tx: branches.load(tx, held.id), read_only=True)
        group = _Group(work, known)
        await self._begin(group)
        ends = await asyncio.gather(*(self._branch(group, each) for each in group.todo), return_exceptions=True)
        for error in sorted((each for each in ends if each is not None), key=lambda each: isinstance(each, Exception)):
            raise error  # a cancellation first
        return await self._move(group)

    async def _begin(self, group: _Group) -> None:
        """Decides conditions, and puts on record what begins elsewhere."""
        begun: dict[str, Branch] = {}
        going = []
        for work in group.todo:
            fresh = group.known.get(work.place) is None
            if fresh and group.held.direction is Direction.ACTION and not work.is_needed():
                begun[work.place] = Branch(Stage.SKIPPED, 0, False)
                continue
            going.append(work)
            if not work.attempt.local and work.attempt.number <= work.retry.attempts:
                begun[work.place] = Branch(Stage.BEGUN, work.attempt.number, True)
        group.todo = going
        if begun:
            await insist(self._database, lambda tx: branches.begin(tx, group.held, begun))
            group.known |= begun

    async def _branch(self, group: _Group, work: Work) -> None:
        began = time.perf_counter()
        with self._telemetry.span(work.title, attributes=work.attributes) as span, working(work.context):
            if work.attempt.number > work.retry.attempts:
                outcome = Outcome(Ended.LOST, "the process ended during the attempts before")
                await self._ended(group, work, outcome, None)
            elif work.attempt.local:
                outcome = await self._local(group, work, span)
            else:
                outcome, state = await tried(work, span, self._log, lambda: work.effect(None))
                await self._ended(group, work, outcome, state)
        self._metrics.attempted(work, outcome, time.perf_counter() - began)

    async def _local(self, group: _Group, work: Work, span: Span) -> Outcome:
        async def unit(tx: Transaction) -> tuple[Outcome, Branch, int]:
            if work.awaits is not None:
                outcome, state = await conclude(tx, work, work.awaits)
            else:
                outcome, state = DONE, await work.effect(tx)
            now = _branch_after(group, work, outcome, state)
            return outcome, now, await branches.ended(tx, work.held, work.attempt, outcome, now)

        outcome, came = await tried(work, span, self._log, lambda: self._database.run(unit))
        if came is not None:
            outcome, group.known[work.place], seq = came
            group.seq = max(group.seq, seq)
            return outcome
        outcome = work.doubted(outcome)
        before = group.known.get(work.place)
        found = (await insist(self._database, lambda tx: branches.load(tx, work.held.id), read_only=True)).get(
            work.place
        )
        if found is not None and (before is None or (found.stage, found.attempts) != (before.stage, before.attempts)):
            # Cut off at the wrong moment it was committed all the same.
            group.known[work.place] = replace(found, delay=0.001 if found.stage in OPEN else None)
            group.seq = max(group.seq, await self._seq(work.held))
            return DONE if found.stage is Stage.DONE else outcome
        await self._ended(group, work, outcome, None)
        return outcome

    async def _ended(self, group: _Group, work: Work, outcome: Outcome, state: Any) -> None:
        now = _branch_after(group, work, outcome, state)
        while True:
            try:
                write = partial(branches.ended, held=work.held, attempt=work.attempt, outcome=outcome, branch=now)
                seq = await insist(self._database, write)
            except CommitUnknown:
                known = await insist(self._database, lambda tx: branches.load(tx, work.held.id), read_only=True)
                found = known.get(work.place)
                if found is None or (found.stage, found.attempts) != (now.stage, now.attempts):
                    continue
                seq = await self._seq(work.held)
            group.known[work.place] = now
            group.seq = max(group.seq, seq)
            return

    async def _seq(self, held: Held) -> int:
        return (await self._reloaded(held)).seq

    async def _reloaded(self, held: Held) -> Held:
        read = partial(leases.reload, owner=self._owner, held=held)
        found = await insist(self._database, read, read_only=True)
        if found is None:
            raise LeaseLost
        return found

    async def _move(self, group: _Group) -> tuple[Transition, Held | None]:
        transition = group.verdict()
        move = transition.move
        waiting = [place for place, now in group.known.items() if now.stage is Stage.WAITING and now.delay is not None]

        async def unit(tx: Transaction) -> Held | None:
            now = await record(tx, transition)
            if move.put_off and waiting:
                await branches.wake_if_arrived(tx, group.held.id, waiting)
            if move.status is Status.STUCK:
                await branches.forgive(tx, group.held.id)
            return now

        while True:
            try:
                return transition, await insist(self._database, unit)
            except CommitUnknown:
                reloaded = await self._reloaded(group.held)
                if reloaded.seq > group.seq:
                    return transition, reloaded


def _branch_after(group: _Group, work: Work, outcome: Outcome, state: Any) -> Branch:
    now = branch_after(work.attempt, work.retry, outcome, group.known.get(work.place))
    if now.stage is not Stage.DONE:
        return now
    before = work.held.state
    return replace(now, changes={name: value for name, value in state.items() if before.get(name) != value})
