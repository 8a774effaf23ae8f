"""What an operator can do to a saga that has not ended, each with a line in the audit trail.

Every operation raises the saga's epoch, which ends the lease of an engine that is at work on it: whatever that still
writes changes nothing, and a local step that is under way is rolled back. A step elsewhere may have taken effect all
the same, as after a crash; that is why an attempt that is cut off counts as one whose outcome nobody knows.

An operation is written under the epoch and transition that it was decided on. Of two operators at once one is first;
the other is told who was, and nothing of theirs is done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from microkit.db import Transaction, database_now
from microkit.errors import BadRequest, Conflict, NotFound
from microkit.saga.branches import at_once, hold
from microkit.saga.definition import Saga
from microkit.saga.gathering import count_as_done, merged_so_far
from microkit.saga.keys import SIGNAL, give_back, holder_of
from microkit.saga.progress import DONE, Attempt, Ended, Move, after, turn_back
from microkit.saga.step import Failure, StepKind
from microkit.saga.tables import ENDS, Direction, Status, saga, saga_operation, saga_step
from microkit.saga.waits import Waiting, place_of, wait_of

BY_OPERATOR = "operator"
"""The ``type`` of the failure for which an operator had a saga compensated."""


class Operation(StrEnum):
    RESUME = "resume"
    RETRY_STEP = "retry-step"
    SKIP_STEP = "skip-step"
    COMPENSATE = "compensate"


@dataclass(frozen=True, slots=True)
class Operator:
    """Who does it (1 to 200 characters), and why (1,000 at most), for the audit trail.

    ``epoch`` is that of the ``SagaView`` on which they decided: a saga that has moved on since is left alone. Without
    it the saga is taken as it stands.

    Raises:
        BadRequest: the name is empty, or either is too long or holds a NUL.
    """

    name: str
    reason: str | None = None
    epoch: int | None = None

    def __post_init__(self) -> None:
        if not 0 < len(self.name.strip()) <= 200:
            raise BadRequest("An operator's name has 1 to 200 characters")
        if len(self.reason or "") > 1000 or "\x00" in f"{self.name}{self.reason}":
            raise BadRequest("An operator's reason has 1,000 characters at most, and none of them is NUL")


async def resume(tx: Transaction, saga_id: UUID, operator: Operator, *, sagas: Sequence[Saga[Any]] = ()) -> None:
    """Lets a stuck saga go on with the step and in the direction that it was parked in, its attempts counted anew.

    ``sagas`` are the definitions of the service; see ``retry_step``.

    Raises:
        NotFound: there is none of this id.
        Conflict: it has ended, is not stuck, or another operator or an engine was faster.
    """
    row = await _begun(tx, await _look(tx, saga_id, operator))
    if row["status"] != Status.STUCK:
        raise Conflict(
            f"Saga {saga_id} is {row['status']}, not stuck: nothing was changed; to try its step {row['step']!r} at "
            "once, retry the step"
        )
    await _write(tx, row, operator, Operation.RESUME, _again(row, sagas))
    await at_once(tx, saga_id)


async def retry_step(
    tx: Transaction,
    saga_id: UUID,
    operator: Operator,
    *,
    step: str | None = None,
    sagas: Sequence[Saga[Any]] = (),
) -> None:
    """Tries the current step again now, its attempts counted anew: of a saga that is stuck, waits, or is under way.

    ``step`` is the one that the operator means: a saga that is elsewhere is left alone. The attempt is told that it is
    not the first, but where its definition among ``sagas`` allows one attempt only, which this then is.

    Raises:
        NotFound: there is none of this id.
        Conflict: it has ended, is at another step, or another operator or an engine was faster.
    """
    row = await _begun(tx, await _look(tx, saga_id, operator))
    _expect(row, step)
    await _write(tx, row, operator, Operation.RETRY_STEP, _again(row, sagas))
    await at_once(tx, saga_id)


async def skip_step(
    tx: Transaction, saga_id: UUID, operator: Operator, *, step: str, sagas: Sequence[Saga[Any]]
) -> None:
    """Counts the current step, or its compensation, as done without doing it: the operator did it by hand, or it need
    not be done. The state stays as it is. If the saga is compensated later, the step's compensation runs all the same.

    ``step`` is the one that the operator means: two who skip at once would else skip two. ``sagas`` are the service's
    definitions.

    Raises:
        NotFound: there is none of this id.
        Conflict: it has ended, is at another step, its definition is not among ``sagas``, or another was faster.
    """
    row = await _begun(tx, await _look(tx, saga_id, operator))
    _expect(row, step)
    definition = _definition(row, sagas)
    attempt = _attempt(definition, row)
    values = _values(after(definition, attempt, DONE))
    if attempt.step.branches:
        await _hold(tx, row)
        values["state"] = await count_as_done(tx, row, attempt.step)
    await _write(tx, row, operator, Operation.SKIP_STEP, values, Ended.SKIPPED)


async def compensate(
    tx: Transaction,
    saga_id: UUID,
    operator: Operator,
    *,
    sagas: Sequence[Saga[Any]],
    pivot_did_not_happen: bool = False,
) -> None:
    """Turns a saga back that has not passed its pivot: what was done is undone, in reverse. The operator's reason is
    the failure's, which compensations may tell the person who started the saga.

    A pivot that was tried elsewhere, or asked for, or whose event has come, may have happened; only who has made sure
    that it did not may say so.

    Raises:
        NotFound: there is none of this id.
        Conflict: it has ended, is compensated already, has passed its pivot, may have passed it, its definition is not
            among ``sagas``, or another was faster.
    """
    row = await _look(tx, saga_id, operator)
    if row["direction"] == Direction.UNDO:
        raise Conflict(
            f"Saga {saga_id} is being compensated already, and is at step {row['step']!r}: nothing was changed; resume "
            "it if it is stuck, or retry or skip the step"
        )
    definition = _definition(row, sagas)
    attempt = _attempt(definition, row)
    await _hold(tx, row)
    wait = await wait_of(tx, saga_id, place_of(attempt.step.name, Direction.ACTION))
    _check_way_back(row, attempt, wait, sure=pivot_did_not_happen)
    failure = Failure(attempt.step.name, operator.reason or "It was cancelled by an operator.", BY_OPERATOR)
    step = attempt.step
    # What a group's branches did stands in their rows. What is awaited may still come.
    own = bool(step.branches) or (not attempt.local and attempt.number > 0) or wait is not None
    values = _values(turn_back(definition, attempt, failure, own=own))
    if step.branches:
        values["state"] = await merged_so_far(tx, row, step)
    await _write(tx, row, operator, Operation.COMPENSATE, values)


def _check_way_back(row: sa.RowMapping, attempt: Attempt, wait: Waiting | None, *, sure: bool) -> None:
    step, tried = attempt.step, attempt.number > 0
    if step.kind is StepKind.RETRIABLE:
        raise Conflict(
            f"Saga {row['id']} is at step {step.name!r}, past its point of no return: nothing was changed; it can be "
            "resumed, or the step retried or skipped"
        )
    if step.kind is not StepKind.PIVOT:
        return
    if step.awaits is not None:  # once it waits, others do it; and it has happened when it came
        tried = wait is Waiting.ARRIVED or (wait is not None and step.awaits.command is not None)
    elif attempt.local:
        return
    if not tried:
        return
    if not attempt.local and row["lease_owner"] is not None:
        raise Conflict(
            f"An attempt of the pivot {step.name!r} of saga {row['id']} is under way, and may take effect: nothing was "
            "changed; look again when it has ended"
        )
    if not sure:
        raise Conflict(
            f"The pivot {step.name!r} of saga {row['id']} was tried, and may have happened: nothing was changed; make "
            "sure that it did not, then say so (pivot-did-not-happen), or else skip or retry the step"
        )


async def _look(tx: Transaction, saga_id: UUID, operator: Operator) -> sa.RowMapping:
    row = (await tx.execute(sa.select(saga).where(saga.c.id == saga_id))).mappings().one_or_none()
    if row is None:
        raise NotFound(f"There is no saga {saga_id}")
    if operator.epoch is not None and row["epoch"] != operator.epoch:
        raise await _overtaken(tx, saga_id, operator.epoch)
    if row["status"] in ENDS:
        raise Conflict(
            f"Saga {saga_id} has ended: it is {row['status']} since {_clock(row['updated_at'])}; nothing was changed"
        )
    return row


async def _hold(tx: Transaction, row: sa.RowMapping) -> None:
    """Locks the saga as it was looked at, so that no event comes and no branch ends meanwhile."""
    if not await hold(tx, row["id"], row["epoch"]):
        raise await _overtaken(tx, row["id"], row["epoch"])


async def _begun(tx: Transaction, row: sa.RowMapping) -> sa.RowMapping:
    """``row``, of a saga that has not to wait for another to end."""
    if row["status"] == Status.QUEUED:
        raise Conflict(
            f"Saga {row['id']} has not begun: saga {await holder_of(tx, row['key'])} is at work on {row['key']!r}, and "
            "one at a time can be; nothing was changed; move that one on, or have this one compensated"
        )
    return row


def _expect(row: sa.RowMapping, step: str | None) -> None:
    if step is not None and step != row["step"]:
        raise Conflict(f"Saga {row['id']} is at step {row['step']!r}, not at {step!r}: nothing was changed; look again")


def _definition(row: sa.RowMapping, sagas: Sequence[Saga[Any]]) -> Saga[Any]:
    for each in sagas:
        if each.fingerprint == row["fingerprint"]:
            return each
    raise Conflict(
        f"Saga {row['id']} began with a definition of {row['name']!r}, version {row['version']}, that is not here: "
        "nothing was changed; offer that definition again, beside the newer one"
    )


def _attempt(definition: Saga[Any], row: sa.RowMapping) -> Attempt:
    step = definition.steps[definition.positions[row["step"]]]
    direction = Direction(row["direction"])
    local = step.undo_local if direction is Direction.UNDO else step.action_local
    failure = Failure(**row["failure"]) if row["failure"] else None
    skipped = frozenset(name for name, needed in (row["decisions"] or {}).items() if not needed)
    return Attempt(step, direction, row["attempts"], local, failure, skipped=skipped)


def _again(row: sa.RowMapping, sagas: Sequence[Saga[Any]]) -> dict[str, Any]:
    status = Status.COMPENSATING if row["direction"] == Direction.UNDO else Status.RUNNING
    # What was tried before is still unknown: not a first attempt again, unless there may be but one.
    before = min(row["attempts"], 1)
    definition = next((each for each in sagas if each.fingerprint == row["fingerprint"]), None)
    if definition is not None and before and _allowed(attempt := _attempt(definition, row)) == 1:
        if attempt.direction is Direction.ACTION and attempt.step.kind is StepKind.COMPENSATABLE and not attempt.local:
            # A first attempt that refuses is not undone, and the one before may have taken effect.
            raise Conflict(
                f"Step {attempt.step.name!r} of saga {row['id']} may have one attempt, and had it: nothing was "
                "changed; have the saga compensated, or skip the step"
            )
        before = 0
    return {"status": status, "attempts": before, "next_at": database_now()}


def _allowed(attempt: Attempt) -> int:
    return (attempt.step.undo_retry if attempt.direction is Direction.UNDO else attempt.step.retry).attempts


def _values(move: Move) -> dict[str, Any]:
    return {
        "status": move.status,
        "direction": move.direction,
        "step": move.step,
        "attempts": 0,
        "failure": asdict(move.failure) if move.failure else None,
        "error": None,
        "next_at": None if move.wait is None else database_now(),
    }


async def _write(
    tx: Transaction,
    row: sa.RowMapping,
    operator: Operator,
    operation: Operation,
    values: Mapping[str, Any],
    ended: Ended | None = None,
) -> None:
    """Moves the saga, closes an attempt that was under way in the history, and adds to the audit trail."""
    if ended is None and row["lease_owner"] is not None:
        ended = Ended.LOST
    moved = (
        sa.update(saga)
        .where(saga.c.id == row["id"], saga.c.epoch == row["epoch"], saga.c.seq == row["seq"])
        .values(
            **values,
            epoch=row["epoch"] + 1,
            seq=row["seq"] + (ended is not None),
            lease_owner=None,
            not_yet_since=None,
            parked_for=None,
            updated_at=database_now(),
        )
        .returning(saga.c.updated_at)
    )
    now = (await tx.execute(moved)).scalar()
    if now is None:
        raise await _overtaken(tx, row["id"], row["epoch"])
    was = {"step": row["step"], "direction": row["direction"]}
    if ended is not None:
        await tx.execute(sa.insert(saga_step).values(**was, **_closed(row, operator, operation, ended, now)))
    await tx.execute(
        sa.insert(saga_operation).values(
            **was,
            saga_id=row["id"],
            epoch=row["epoch"] + 1,
            operation=operation,
            operator=operator.name,
            reason=operator.reason,
            status=row["status"],
            done_at=now,
        )
    )
    if values["status"] in ENDS and row["key"] is not None:
        await give_back(tx, row["id"], row["key"])
    tx.wake(SIGNAL)


def _closed(
    row: sa.RowMapping, operator: Operator, operation: Operation, ended: Ended, now: datetime
) -> dict[str, Any]:
    return {
        "saga_id": row["id"],
        "seq": row["seq"] + 1,
        "attempt": row["attempts"],
        "status": ended,
        "started_at": row["updated_at"],
        "ended_at": now,
        "error": f"{operation} by {operator.name}",
    }


async def _overtaken(tx: Transaction, saga_id: UUID, epoch: int) -> Conflict:
    """What happened since the saga had ``epoch``."""
    first = (
        sa.select(saga_operation)
        .where(saga_operation.c.saga_id == saga_id, saga_operation.c.epoch > epoch)
        .order_by(saga_operation.c.epoch)
        .limit(1)
    )
    other = (await tx.execute(first)).mappings().first()
    if other is None:
        return Conflict(f"Saga {saga_id} has moved on since you looked: nothing was changed; look again")
    return Conflict(
        f"Another operator was faster: {other['operator']} did {other['operation']} to saga {saga_id} at step "
        f"{other['step']!r}, {_clock(other['done_at'])}; nothing of yours was done; look again"
    )


def _clock(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M:%S} UTC"
