"""Where a saga goes after an attempt: forward, back, a wait, or aside. Pure but for jitter: no clock, no database."""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from microkit.errors import Problem
from microkit.saga.definition import Saga
from microkit.saga.step import Failure, Step, StepKind, StepNotYet, StepRefused
from microkit.saga.tables import Direction, Status


class Ended(StrEnum):
    """How an attempt of a step ended. ``lost``: with the process, or the lease, that made it. ``not-yet``: it was none,
    the step did nothing and asked to be called again. ``waiting``: none either, it waits for an event. ``skipped``: by
    its condition it was not needed, or an operator said that it counts as done."""

    DONE = "done"
    REFUSED = "refused"
    FAILED = "failed"
    TIMED_OUT = "timed-out"
    LOST = "lost"
    NOT_YET = "not-yet"
    WAITING = "waiting"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt: number ``number`` (from 1) of ``step`` in ``direction``. ``failure`` is why it is being undone.

    ``local``: it runs in a transaction of this service's database, so that a failed attempt is known to have left
    nothing behind. Of any other the outcome is unknown until it says so itself. ``waited`` is how many seconds ago the
    step said for the first time that its turn had not come. ``skipped`` are the steps that were not needed.
    """

    step: Step
    direction: Direction
    number: int
    local: bool
    failure: Failure | None = None
    waited: float = 0.0
    skipped: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of an attempt. ``reason`` is for people and ``type`` for programs; both empty where it is done.
    ``again_after`` is how many seconds a step asks for whose turn has not come, or may wait for its event. ``own``: it
    was refused and may have happened, or may still happen, all the same."""

    ended: Ended
    reason: str = ""
    type: str | None = None
    again_after: float = 0.0
    own: bool = False


DONE = Outcome(Ended.DONE)

_LONGEST_REASON = 1000

# Answers that say "not now" or "not you", which no compensation cures: they are failures, to be tried again.
_PASSING = frozenset({401, 403, 408, 421, 425, 429})


def outcome_of(error: Exception) -> Outcome:
    """A refusal where the step says that it cannot be done and was not, a wait where it says that its turn has not
    come; else a failure, to be tried again.

    A problem with a 4xx status is a refusal, unless it is about the caller's token or the moment: 401, 403, 408, 421,
    425, 429, or any that asks to come back with ``Retry-After``.
    """
    if isinstance(error, StepRefused):
        return Outcome(Ended.REFUSED, _clean(error.reason), error.type)
    if isinstance(error, StepNotYet):
        return Outcome(Ended.NOT_YET, _clean(error.reason), again_after=error.after)
    if isinstance(error, Problem):
        later = error.status in _PASSING or any(name.lower() == "retry-after" for name in error.headers)
        refused = 400 <= error.status < 500 and not later
        return Outcome(Ended.REFUSED if refused else Ended.FAILED, _clean(str(error)), error.type)
    if isinstance(error, TimeoutError):
        return Outcome(Ended.TIMED_OUT, _clean(str(error) or "it took longer than it may"))
    return Outcome(Ended.FAILED, _clean(f"{type(error).__name__}: {error}"))


def in_patience(attempt: Attempt, outcome: Outcome) -> Outcome:
    """``outcome``, but a failure where the step has said for longer than its patience that its turn has not come."""
    if outcome.ended is not Ended.NOT_YET or attempt.waited <= attempt.step.patience:
        return outcome
    return Outcome(Ended.FAILED, _clean(f"still not yet after {attempt.waited:.0f} s: {outcome.reason}"))


def _clean(text: str) -> str:
    # PostgreSQL's text holds no NUL, and no database a half of a surrogate pair.
    return text.replace("\x00", "�").encode("utf-8", "replace").decode()[:_LONGEST_REASON]


@dataclass(frozen=True, slots=True)
class Move:
    """Where the saga stands after an attempt.

    ``step`` is the one to do next, in ``direction``; none at an end. ``wait`` is how many seconds until its first or
    next attempt; 0 goes on at once, under the same lease. An end, and ``stuck``, waits for nothing: ``None``.
    ``put_off``: the step's turn had not come, so that this was no attempt.
    """

    status: Status
    direction: Direction
    step: str | None
    wait: float | None
    failure: Failure | None = None
    error: str | None = None
    put_off: bool = False

    @property
    def goes_on(self) -> bool:
        return self.wait == 0


def after(saga: Saga[Any], attempt: Attempt, outcome: Outcome) -> Move:
    """The move that follows ``attempt`` of a step of ``saga``."""
    if outcome.ended in (Ended.NOT_YET, Ended.WAITING):
        return _put_off(attempt, outcome)
    if attempt.direction is Direction.UNDO:
        return _after_undo(saga, attempt, outcome)
    if outcome.ended in (Ended.DONE, Ended.SKIPPED):
        position = saga.positions[attempt.step.name] + 1
        if position == len(saga.steps):
            return Move(Status.COMPLETED, Direction.ACTION, None, None)
        return Move(Status.RUNNING, Direction.ACTION, saga.steps[position].name, 0)
    if outcome.ended is Ended.REFUSED and attempt.step.kind is not StepKind.RETRIABLE:
        # A first attempt that refuses has left nothing. An earlier one may have, before its answer was lost.
        own = outcome.own or (not attempt.local and attempt.number > 1)
        return turn_back(saga, attempt, Failure(attempt.step.name, outcome.reason, outcome.type), own=own)
    return _after_failure(saga, attempt, outcome)


def _after_failure(saga: Saga[Any], attempt: Attempt, outcome: Outcome) -> Move:
    step = attempt.step
    if attempt.number < step.retry.attempts:
        return _wait(Status.RUNNING, attempt, outcome, outcome.again_after or step.retry.delay(attempt.number))
    if step.kind is StepKind.COMPENSATABLE or (step.kind is StepKind.PIVOT and attempt.local and not outcome.own):
        reason = _clean(f"gave up after {attempt.number} attempts: {outcome.reason}")
        own = outcome.own or not attempt.local
        return turn_back(saga, attempt, Failure(step.name, reason, outcome.type), own=own)
    return Move(Status.STUCK, Direction.ACTION, step.name, None, error=outcome.reason)


def _after_undo(saga: Saga[Any], attempt: Attempt, outcome: Outcome) -> Move:
    step = attempt.step
    if outcome.ended is Ended.DONE:
        return _undo_from(saga, saga.positions[step.name] - 1, attempt.failure, attempt.skipped)
    if attempt.number < step.undo_retry.attempts:
        delay = outcome.again_after or step.undo_retry.delay(attempt.number)
        return _wait(Status.COMPENSATING, attempt, outcome, delay)
    return Move(Status.STUCK, Direction.UNDO, step.name, None, attempt.failure, outcome.reason)


def _wait(status: Status, attempt: Attempt, outcome: Outcome, seconds: float) -> Move:
    # Never 0, which would mean the next step: this is the same one again, under a new lease.
    wait = max(seconds, 0.001)
    return Move(status, attempt.direction, attempt.step.name, wait, attempt.failure, outcome.reason)


def _put_off(attempt: Attempt, outcome: Outcome) -> Move:
    status = Status.COMPENSATING if attempt.direction is Direction.UNDO else Status.RUNNING
    # Those that wait for one thing are often put off together: spread, they do not come back together. Who waits for an
    # event has its own time.
    spread = 1.0 if outcome.ended is Ended.WAITING else random.uniform(1.0, 1.5)  # noqa: S311  jitter, no secret
    wait = max(outcome.again_after * spread, 0.001)
    return Move(status, attempt.direction, attempt.step.name, wait, attempt.failure, outcome.reason, put_off=True)


def turn_back(saga: Saga[Any], attempt: Attempt, failure: Failure, *, own: bool) -> Move:
    """The first move of a compensation, for ``failure``. ``own``: the attempt's own step may have taken effect, so that
    it is undone too."""
    position = saga.positions[attempt.step.name]
    return _undo_from(saga, position if own else position - 1, failure, attempt.skipped)


def _undo_from(saga: Saga[Any], position: int, failure: Failure | None, skipped: frozenset[str]) -> Move:
    for step in reversed(saga.steps[: position + 1]):
        if step.undo is not None and step.name not in skipped:
            return Move(Status.COMPENSATING, Direction.UNDO, step.name, 0, failure)
    return Move(Status.COMPENSATED, Direction.UNDO, None, None, failure)
