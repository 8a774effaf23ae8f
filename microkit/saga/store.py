"""How a saga's rows move on. Every time is the database's, every write names the lease's epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from operator import itemgetter
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import ColumnElement
from sqlalchemy.dialects import postgresql

from microkit.db import Transaction, database_now, jsontext
from microkit.db.prepared import PreparedSelect
from microkit.errors import MicrokitError
from microkit.saga.keys import give_back
from microkit.saga.progress import Attempt, Move, Outcome
from microkit.saga.step import Failure
from microkit.saga.tables import ENDS, Direction, Status, saga, saga_step


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
    key: str | None
    decisions: dict[str, bool] | None

    @property
    def waited(self) -> float:
        """Seconds between the first time that the step said that its turn had not come, and this attempt."""
        return 0.0 if self.not_yet_since is None else (self.began_at - self.not_yet_since).total_seconds()

    @property
    def skipped(self) -> frozenset[str]:
        """The steps that were not needed, by their conditions."""
        return frozenset(step for step, needed in (self.decisions or {}).items() if not needed)


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
    saga.c.key,
    saga.c.decisions,
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


# What a transition is made of: a parameter of the plain statements and, on PostgreSQL, an array of all transitions'.
# A field more needs a line here, one in _values, and one in _moved or _ENDED.
_FIELDS: Final[dict[str, Any]] = {
    "id": sa.Uuid(),
    "epoch": sa.BigInteger(),
    "seq": sa.Integer(),
    "state": saga.c.state.type,
    "status": sa.String(),
    "direction": sa.String(),
    "step": sa.String(),
    "attempts": sa.Integer(),
    "failure": saga.c.failure.type,
    "error": sa.Text(),
    "wait": sa.Float(),
    "goes_on": sa.Boolean(),
    "put_off": sa.Boolean(),
    "attempt": sa.Integer(),
    "attempt_step": sa.String(),
    "attempt_direction": sa.String(),
    "ended": sa.String(),
    "began_at": saga_step.c.started_at.type,
    "reason": sa.Text(),
}
_JSON: Final = frozenset(name for name, kind in _FIELDS.items() if isinstance(kind, sa.JSON))


def _values(transition: Transition) -> dict[str, Any]:
    held, attempt, move, outcome = transition.held, transition.attempt, transition.move, transition.outcome
    return {
        "id": held.id,
        "epoch": held.epoch,
        "seq": held.seq,
        "state": transition.state,
        "status": move.status,
        "direction": move.direction,
        "step": move.step,
        "attempts": 1 if move.goes_on else attempt.number - move.put_off,
        "failure": asdict(move.failure) if move.failure else None,
        "error": move.error,
        "wait": move.wait,
        "goes_on": move.goes_on,
        "put_off": move.put_off,
        "attempt": attempt.number,
        "attempt_step": attempt.step.name,
        "attempt_direction": attempt.direction,
        "ended": outcome.ended,
        "began_at": held.began_at,
        "reason": outcome.reason or None,
    }


def _fenced(of: Mapping[str, ColumnElement[Any]]) -> ColumnElement[bool]:
    # The epoch tells a lease from those after it; the transition's number tells this one from itself, sent again.
    return sa.and_(saga.c.id == of["id"], saga.c.epoch == of["epoch"], saga.c.seq == of["seq"])


def _moved(of: Mapping[str, ColumnElement[Any]]) -> dict[str, Any]:
    """What a transition writes into the saga's row. One that goes on leaves ``next_at``, and so every index, alone."""
    put_off = sa.func.coalesce(saga.c.not_yet_since, database_now())
    return {
        **{name: of[name] for name in ("state", "status", "direction", "step", "attempts", "failure", "error")},
        "seq": of["seq"] + 1,
        "updated_at": database_now(),
        "next_at": sa.case((of["goes_on"], saga.c.next_at), else_=database_now(of["wait"])),
        "lease_owner": sa.case((of["goes_on"], saga.c.lease_owner), else_=None),
        "not_yet_since": sa.case(
            (of["put_off"], put_off),
            (sa.and_(sa.not_(of["goes_on"]), saga.c.step == of["step"]), saga.c.not_yet_since),
            else_=None,
        ),
    }


# The columns of the history by the fields that they are taken from. A wait of a step whose turn has not come is none.
_ENDED: Final = {
    "step": "attempt_step",
    "direction": "attempt_direction",
    "attempt": "attempt",
    "status": "ended",
    "started_at": "began_at",
    "error": "reason",
}


def _all_at_once() -> PreparedSelect:
    """PostgreSQL: any number of transitions in one statement, whose text is always the same. Returns those written."""
    kinds = {name: sa.Text() if name in _JSON else kind for name, kind in _FIELDS.items()}
    arrays = [sa.bindparam(name, type_=postgresql.ARRAY(kind)) for name, kind in kinds.items()]
    columns = [sa.column(name, kind) for name, kind in kinds.items()]
    moves = sa.func.unnest(*arrays).table_valued(*columns).render_derived(name="moves")
    of = {name: sa.cast(moves.c[name], kind) if name in _JSON else moves.c[name] for name, kind in _FIELDS.items()}
    ended = [moves.c[name].label(f"moves_{name}") for name in ("seq", "put_off", *_ENDED.values())]
    update = sa.update(saga).where(_fenced(of)).values(_moved(of)).returning(saga.c.id, saga.c.updated_at, *ended)
    moved = update.cte("moved")
    history = sa.select(
        moved.c.id,
        moved.c.moves_seq + 1,
        moved.c.updated_at,
        *(moved.c[f"moves_{name}"] for name in _ENDED.values()),
    ).where(sa.not_(moved.c.moves_put_off))
    added = sa.insert(saga_step).from_select(["saga_id", "seq", "ended_at", *_ENDED], history).cte("added")
    return PreparedSelect(sa.select(moved.c.id, moved.c.updated_at).add_cte(added), list(_FIELDS))


_ALL_AT_ONCE: Final = _all_at_once()
_ONE: Final = {name: sa.bindparam(f"to_{name}", type_=kind) for name, kind in _FIELDS.items()}
_MOVE: Final = sa.update(saga).where(_fenced(_ONE)).values(_moved(_ONE)).returning(saga.c.updated_at)
_HISTORY: Final = sa.insert(saga_step).values(
    saga_id=_ONE["id"],
    seq=_ONE["seq"] + 1,
    ended_at=sa.bindparam("now", type_=saga_step.c.ended_at.type),
    **{column: _ONE[name] for column, name in _ENDED.items()},
)


async def record_all(
    tx: Transaction, transitions: Sequence[Transition], *, alone: bool = False
) -> list[Held | LeaseLost | None]:
    """Writes transitions of several sagas. For each, in their order: the saga as it stands then, if it goes on at once;
    ``None`` where its lease is given back; ``LeaseLost`` where the lease was lost and nothing of it is written.

    ``alone`` says that the transaction has nothing else to do: then this may commit it."""
    # In one order everywhere, so that two transactions never wait for each other.
    values = sorted((_values(transition) for transition in transitions), key=itemgetter("id"))
    if tx.dialect == "postgresql":
        columns: dict[str, list[Any]] = {name: [each[name] for each in values] for name in _FIELDS}
        for name in _JSON:
            columns[name] = [None if value is None else jsontext.dumps(value) for value in columns[name]]
        fetch = tx.fetch_alone if alone and not any(_ends_with_key(each) for each in transitions) else tx.fetch
        written = {row[0]: row[1] for row in await fetch(_ALL_AT_ONCE, columns)}
    else:
        written = {each["id"]: now for each in values if (now := await _write_one(tx, each)) is not None}
    ended = [each.held for each in transitions if _ends_with_key(each) and each.held.id in written]
    for held in sorted(ended, key=lambda each: each.key or ""):
        await give_back(tx, held.id, held.key or "")
    return [_after(transition, written.get(transition.held.id)) for transition in transitions]


def _ends_with_key(transition: Transition) -> bool:
    return bool(transition.held.key) and transition.move.status in ENDS


_DECIDE: Final = (
    sa.update(saga)
    .where(_fenced({name: sa.bindparam(f"held_{name}") for name in ("id", "epoch", "seq")}))
    .values(decisions=sa.bindparam("decided", type_=saga.c.decisions.type))
    .returning(saga.c.id)
)


async def decide(tx: Transaction, held: Held, *, needed: bool) -> Held:
    """Writes down whether the condition of the step that ``held`` is at holds.

    Raises:
        LeaseLost: nothing is written.
    """
    decisions = {**(held.decisions or {}), held.step: needed}
    of = {"held_id": held.id, "held_epoch": held.epoch, "held_seq": held.seq, "decided": decisions}
    if (await tx.execute(_DECIDE, of)).first() is None:
        raise LeaseLost
    return replace(held, decisions=decisions)


async def _write_one(tx: Transaction, values: Mapping[str, Any]) -> datetime | None:
    """The database's time of the transition; ``None`` where the lease was lost."""
    parameters = {f"to_{name}": value for name, value in values.items()}
    now: datetime | None = (await tx.execute(_MOVE, parameters)).scalar()
    if now is not None and not values["put_off"]:
        await tx.execute(_HISTORY, {**parameters, "now": now})
    return now


def _after(transition: Transition, now: datetime | None) -> Held | LeaseLost | None:
    move, held = transition.move, transition.held
    if now is None:
        return LeaseLost()
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


async def record(tx: Transaction, transition: Transition) -> Held | None:
    """Writes one transition. Returns the saga as it stands then, if it goes on at once; else its lease is given back.

    Raises:
        LeaseLost: nothing is written, and a transaction that holds the step's effect must be rolled back.
    """
    [written] = await record_all(tx, [transition])
    if isinstance(written, LeaseLost):
        raise written
    return written
