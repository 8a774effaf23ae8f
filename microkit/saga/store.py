"""How a saga's rows move on. Every time is the database's, every write names the lease's epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from microkit.db import Transaction, database_now
from microkit.errors import MicrokitError
from microkit.saga.progress import Attempt, Move, Outcome
from microkit.saga.step import Failure
from microkit.saga.tables import Direction, Status, saga, saga_step


@dataclass(frozen=True, slots=True)
class Held:
    """A saga under this engine's lease, as its row stands. ``attempts`` counts the one that begins now."""

    # The order is that of HELD.

    id: UUID
    name: str
    version: int
    fingerprint: str
    state: Any
    status: Status
    direction: Direction
    step: str
    attempts: int
    failure: Failure | None
    seq: int
    epoch: int
    began_at: datetime
    context: dict[str, Any]
    not_yet_since: datetime | None

    @property
    def waited(self) -> float:
        """Seconds between the first time that the step said that its turn had not come, and this attempt."""
        return 0.0 if self.not_yet_since is None else (self.began_at - self.not_yet_since).total_seconds()


HELD = (
    saga.c.id,
    saga.c.name,
    saga.c.version,
    saga.c.fingerprint,
    saga.c.state,
    saga.c.status,
    saga.c.direction,
    saga.c.step,
    saga.c.attempts,
    saga.c.failure,
    saga.c.seq,
    saga.c.epoch,
    saga.c.updated_at,
    saga.c.context,
    saga.c.not_yet_since,
)


def held_from(row: Sequence[Any]) -> Held:
    id_, name, version, fingerprint, state, status, direction, step, attempts, failure, *rest = row
    return Held(
        id_,
        name,
        version,
        fingerprint,
        state,
        Status(status),
        Direction(direction),
        step,
        attempts,
        Failure(**failure) if failure else None,
        *rest,
    )


# The epoch tells a lease from those after it; the number of the transition tells this one from itself, sent again.
_fenced = sa.and_(
    saga.c.id == sa.bindparam("held_id"),
    saga.c.epoch == sa.bindparam("held_epoch"),
    saga.c.seq == sa.bindparam("held_seq"),
)

_TO_STEP = sa.bindparam("to_step", type_=saga.c.step.type)

_MOVED = {
    "state": sa.bindparam("state", type_=saga.c.state.type),
    "status": sa.bindparam("status"),
    "direction": sa.bindparam("to_direction"),
    "step": _TO_STEP,
    "attempts": sa.bindparam("attempts"),
    "failure": sa.bindparam("failure", type_=saga.c.failure.type),
    "error": sa.bindparam("to_error"),
    "seq": sa.bindparam("seq"),
    "updated_at": database_now(),
    "not_yet_since": None,
}
_RELEASED = {"next_at": database_now(sa.bindparam("wait", type_=sa.Float)), "lease_owner": None}
_WAITS_ON = sa.case((saga.c.step == _TO_STEP, saga.c.not_yet_since), else_=None)

# The wait of a step whose turn has not come is no attempt, and so has no row in the history.
_PUT_OFF = (
    sa.update(saga)
    .where(_fenced)
    .values({**_MOVED, **_RELEASED, "not_yet_since": sa.func.coalesce(saga.c.not_yet_since, database_now())})
    .returning(saga.c.updated_at)
)

_ENDED = {
    "seq": sa.bindparam("seq", type_=sa.Integer),
    "step": sa.bindparam("step", type_=sa.String),
    "direction": sa.bindparam("direction", type_=sa.String),
    "attempt": sa.bindparam("attempt", type_=sa.Integer),
    "status": sa.bindparam("ended", type_=sa.String),
    "started_at": sa.bindparam("began_at", type_=saga_step.c.started_at.type),
    "error": sa.bindparam("error", type_=sa.Text),
}


class _Moving:
    """One transition: the saga's row, if the lease still holds, and the history's. One statement where it can be."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.update = sa.update(saga).where(_fenced).values(values).returning(saga.c.id, saga.c.updated_at)
        moved = self.update.cte("moved")
        columns = ["saga_id", "ended_at", *_ENDED]
        self.at_once = (
            sa.insert(saga_step)
            .from_select(columns, sa.select(moved.c.id, moved.c.updated_at, *_ENDED.values()))
            .returning(saga_step.c.ended_at)
        )
        self.history = sa.insert(saga_step).values(
            saga_id=sa.bindparam("held_id"), ended_at=sa.bindparam("ended_at"), **_ENDED
        )

    async def write(self, tx: Transaction, values: dict[str, Any]) -> datetime | None:
        """The database's time of the transition; ``None`` where the lease was lost and nothing is written."""
        if tx.dialect == "postgresql":
            return (await tx.execute(self.at_once, values)).scalar()
        row = (await tx.execute(self.update, values)).first()
        if row is None:
            return None
        now: datetime = row[1]
        await tx.execute(self.history, {**values, "ended_at": now})
        return now


_GO_ON = _Moving(_MOVED)
_LET_GO = _Moving({**_MOVED, **_RELEASED, "not_yet_since": _WAITS_ON})


@dataclass(frozen=True, slots=True)
class Transition:
    """An attempt of a step of ``held``, what came of it, and where the saga goes with ``state`` (as JSON)."""

    held: Held
    attempt: Attempt
    outcome: Outcome
    move: Move
    state: Any


class LeaseLost(MicrokitError):
    """Another engine has the saga, or it has ended: nothing more may be written for it."""


async def record(tx: Transaction, transition: Transition) -> Held | None:
    """Writes a transition. Returns the saga as it stands then, if it goes on at once; else its lease is given back.

    Raises:
        LeaseLost: nothing is written, and a transaction that holds the step's effect must be rolled back.
    """
    held, attempt, move = transition.held, transition.attempt, transition.move
    values: dict[str, Any] = {
        "held_id": held.id,
        "held_epoch": held.epoch,
        "held_seq": held.seq,
        "state": transition.state,
        "status": move.status,
        "to_direction": move.direction,
        "to_step": move.step,
        "attempts": 1 if move.goes_on else attempt.number,
        "failure": asdict(move.failure) if move.failure else None,
        "to_error": move.error,
        "seq": held.seq + 1,
        "step": attempt.step.name,
        "direction": attempt.direction,
        "attempt": attempt.number,
        "ended": transition.outcome.ended,
        "began_at": held.began_at,
        "error": transition.outcome.reason or None,
    }
    if not move.goes_on:
        values["wait"] = move.wait
    if move.put_off:
        values["attempts"] = attempt.number - 1
        now = (await tx.execute(_PUT_OFF, values)).scalar()
    else:
        now = await (_GO_ON if move.goes_on else _LET_GO).write(tx, values)
    if now is None:
        raise LeaseLost
    if not move.goes_on:
        return None
    return replace(
        held,
        state=transition.state,
        status=move.status,
        direction=move.direction,
        step=move.step or "",
        attempts=1,
        failure=move.failure,
        seq=held.seq + 1,
        began_at=now,
        not_yet_since=None,
    )
