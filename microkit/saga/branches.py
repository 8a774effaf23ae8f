"""How far the branches of a parallel group are. Every write names the lease's epoch, and counts as a transition."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from microkit.db import Transaction, database_now
from microkit.saga.progress import Attempt, Ended, Outcome
from microkit.saga.step import Retry, StepKind
from microkit.saga.store import Held, LeaseLost
from microkit.saga.tables import Direction, saga, saga_branch, saga_step, saga_wait
from microkit.saga.waits import UNDO, Waiting


class Stage(StrEnum):
    """Of a branch. ``begun``: an attempt elsewhere, whose outcome is not known; ``failed``: to be tried again."""

    BEGUN = "begun"
    WAITING = "waiting"
    FAILED = "failed"
    DONE = "done"
    REFUSED = "refused"
    GIVEN_UP = "given-up"
    SKIPPED = "skipped"


OPEN: Final = (Stage.BEGUN, Stage.WAITING, Stage.FAILED)


@dataclass(frozen=True, slots=True)
class Branch:
    """``attempts`` that have begun; ``happened``: it did, or may have, and is undone when the saga turns back. A
    ``delay`` in seconds, from now, is there while it waits, or is to be tried again."""

    stage: Stage
    attempts: int
    happened: bool
    changes: dict[str, Any] | None = None
    reason: str | None = None
    type: str | None = None
    delay: float | None = None

    @property
    def is_put_off(self) -> bool:
        """Whether the time for its next attempt has not come. Who waits for an event is asked at any time."""
        return self.stage is Stage.FAILED and self.delay is not None


def branch_after(  # noqa: PLR0911  a table of cases
    attempt: Attempt, retry: Retry, outcome: Outcome, before: Branch | None
) -> Branch:
    """Where a branch stands after an attempt. What it has changed is not in it."""
    number, ended = attempt.number, outcome.ended
    why = (outcome.reason or None, outcome.type)
    earlier = before is not None and before.happened and before.stage is not Stage.BEGUN
    if ended is Ended.DONE:
        return Branch(Stage.DONE, number, True)
    if ended is Ended.WAITING:
        return Branch(Stage.WAITING, number - 1, True, None, *why, outcome.again_after)
    unknown = not attempt.local and number > 1
    if ended is Ended.NOT_YET:
        delay = outcome.again_after * random.uniform(1.0, 1.5)  # noqa: S311  jitter, no secret
        return Branch(Stage.FAILED, number - 1, unknown or earlier, None, *why, delay)
    if ended is Ended.REFUSED and attempt.direction is Direction.ACTION and attempt.step.kind is not StepKind.RETRIABLE:
        return Branch(Stage.REFUSED, number, outcome.own or unknown, None, *why)
    happened = not attempt.local or outcome.own or earlier
    if number >= retry.attempts:
        return Branch(Stage.GIVEN_UP, number, happened, None, *why)
    if outcome.again_after:  # asked again, and waits
        return Branch(Stage.WAITING, number, True, None, *why, outcome.again_after)
    return Branch(Stage.FAILED, number, happened, None, *why, max(retry.delay(number), 0.001))


_ROWS: Final = sa.select(saga_branch, database_now().label("now")).where(
    saga_branch.c.saga_id == sa.bindparam("of_saga")
)
_FENCE: Final = sa.and_(saga.c.id == sa.bindparam("of_saga"), saga.c.epoch == sa.bindparam("of_epoch"))
_HOLD: Final = sa.select(saga.c.seq).where(_FENCE).with_for_update()
_COUNT: Final = sa.update(saga).where(_FENCE).values(seq=saga.c.seq + 1).returning(saga.c.seq, database_now())
_WRITTEN: Final = ("status", "attempts", "happened", "changes", "reason", "type", "updated_at", "not_before")
_DELAY: Final = sa.bindparam("delay", type_=sa.Float)
_NOT_BEFORE: Final = sa.case((_DELAY.is_(None), None), else_=database_now(_DELAY))
_WRITE: Final = {
    name: insert(saga_branch)
    .values(updated_at=database_now(), not_before=_NOT_BEFORE)
    .on_conflict_do_update(
        index_elements=[saga_branch.c.saga_id, saga_branch.c.place],
        set_={column: insert(saga_branch).excluded[column] for column in _WRITTEN},
    )
    for name, insert in (("postgresql", postgresql.insert), ("sqlite", sqlite.insert))
}
_HISTORY: Final = sa.insert(saga_step)
_FORGIVE: Final = (
    sa.update(saga_branch)
    .where(saga_branch.c.saga_id == sa.bindparam("of_saga"), saga_branch.c.status == Stage.GIVEN_UP)
    .values(
        status=Stage.FAILED,
        attempts=sa.case((saga_branch.c.attempts > 1, 1), else_=saga_branch.c.attempts),
        not_before=None,
    )
)
_AT_ONCE: Final = sa.update(saga_branch).where(saga_branch.c.saga_id == sa.bindparam("of_saga")).values(not_before=None)
_WAKE: Final = (
    sa.update(saga)
    .where(
        saga.c.id == sa.bindparam("of_saga"),
        saga.c.next_at.is_not(None),
        sa.exists().where(
            saga_wait.c.saga_id == sa.bindparam("of_saga"),
            saga_wait.c.place.in_(sa.bindparam("places", expanding=True)),
            saga_wait.c.status == Waiting.ARRIVED,
        ),
    )
    .values(next_at=database_now())
)


async def load(tx: Transaction, saga_id: UUID) -> dict[str, Branch]:
    """The branches of a saga's groups that have begun, by place."""
    rows = (await tx.execute(_ROWS, {"of_saga": saga_id})).mappings()
    return {
        row["place"]: Branch(
            Stage(row["status"]),
            row["attempts"],
            row["happened"],
            row["changes"],
            row["reason"],
            row["type"],
            _left(row["not_before"], row["now"]),
        )
        for row in rows
    }


def _left(not_before: datetime | None, now: datetime) -> float | None:
    seconds = 0.0 if not_before is None else (not_before - now).total_seconds()
    return seconds if seconds > 0 else None


async def hold(tx: Transaction, saga_id: UUID, epoch: int) -> bool:
    """Locks a saga's row, before its branches and what it waits for, as an engine and an event do; whether it still has
    this ``epoch``."""
    return (await tx.execute(_HOLD, {"of_saga": saga_id, "of_epoch": epoch})).first() is not None


async def at_once(tx: Transaction, saga_id: UUID) -> None:
    """Has no branch wait for its next attempt."""
    await tx.execute(_AT_ONCE, {"of_saga": saga_id})


async def begin(tx: Transaction, held: Held, branches: Mapping[str, Branch]) -> None:
    """Puts on record, by place, what is about to begin elsewhere and what need not.

    Raises:
        LeaseLost: nothing is written.
    """
    if not await hold(tx, held.id, held.epoch):
        raise LeaseLost
    await write(tx, held.id, branches)


async def write(tx: Transaction, saga_id: UUID, branches: Mapping[str, Branch]) -> None:
    """Writes how far branches are, by place, under a lease that is held."""
    for place, branch in sorted(branches.items()):
        values = {
            "saga_id": saga_id,
            "place": place,
            "status": branch.stage,
            "attempts": branch.attempts,
            "happened": branch.happened,
            "changes": branch.changes,
            "reason": branch.reason,
            "type": branch.type,
            "delay": branch.delay,
        }
        await tx.execute(_WRITE[tx.dialect], values)


async def ended(tx: Transaction, held: Held, attempt: Attempt, outcome: Outcome, branch: Branch) -> int:
    """Writes an attempt of a branch and its history. Returns the number of this transition.

    Raises:
        LeaseLost: nothing is written, and a transaction that holds the branch's effect must be rolled back.
    """
    found = (await tx.execute(_COUNT, {"of_saga": held.id, "of_epoch": held.epoch})).first()
    if found is None:
        raise LeaseLost
    seq: int = found[0]
    await write(tx, held.id, {_place(attempt): branch})
    if outcome.ended in (Ended.WAITING, Ended.NOT_YET):
        return seq
    row = {
        "saga_id": held.id,
        "seq": seq,
        "step": attempt.step.name,
        "direction": attempt.direction,
        "attempt": attempt.number,
        "status": outcome.ended,
        "started_at": held.began_at,
        "ended_at": found[1],
        "error": outcome.reason or None,
    }
    await tx.execute(_HISTORY, row)
    return seq


async def forgive(tx: Transaction, saga_id: UUID) -> None:
    """A group that is stuck: what was given up is tried anew when an operator has it go on."""
    await tx.execute(_FORGIVE, {"of_saga": saga_id})


async def wake_if_arrived(tx: Transaction, saga_id: UUID, places: Collection[str]) -> None:
    """A saga that lets go has it go on at once where an event came for one of ``places`` while it was held."""
    await tx.execute(_WAKE, {"of_saga": saga_id, "places": list(places)})


def _place(attempt: Attempt) -> str:
    return f"{attempt.step.name}{UNDO if attempt.direction is Direction.UNDO else ''}"
