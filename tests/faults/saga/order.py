"""The saga that ``chaos.py`` carries on: what its steps do here and elsewhere, and what each end leaves behind."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass
from typing import Final, Literal

import aiohttp
import sqlalchemy as sa
from pydantic import BaseModel

from microkit.db import Transaction
from microkit.saga import Retry, Saga, StepContext, StepRefused, compensatable, pivot, retriable

PATIENT: Final = Retry(attempts=1_000_000, initial=0.02, maximum=0.2)
"""Nothing is given up: a saga that is parked would hide one that is lost."""


own = sa.MetaData()


effect = sa.Table(
    "effect",
    own,
    # No constraint forbids an effect to be there twice: it is to be seen.
    sa.Column("place", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("saga_id", sa.Uuid, nullable=False),
    sa.Column("what", sa.String(20), nullable=False),
)


class Order(BaseModel):
    """``refused`` is the step that refuses it. ``trail`` holds what its steps say that they did."""

    refused: Literal["", "hold", "pay"] = ""
    trail: list[str] = []


Result = dict[str, list[str]]


@dataclass(frozen=True)
class Elsewhere:
    """The receiver, as a step sees it."""

    session: aiohttp.ClientSession
    url: str

    async def ask(self, what: str, state: Order, step: StepContext) -> Result:
        headers = {"Idempotency-Key": step.idempotency_key}
        async with self.session.post(f"{self.url}/{what}", headers=headers) as answer:
            answer.raise_for_status()
        return {"trail": [*state.trail, what]}


async def _write(what: str, state: Order, tx: Transaction, step: StepContext) -> Result:
    await tx.execute(sa.insert(effect), {"saga_id": step.saga_id, "what": what})
    await asyncio.sleep(random.uniform(0, 0.02))
    return {"trail": [*state.trail, what]}


async def debit(state: Order, tx: Transaction, step: StepContext) -> Result:
    return await _write("debit", state, tx, step)


async def credit_back(state: Order, tx: Transaction, step: StepContext) -> Result:
    return await _write("credit_back", state, tx, step)


async def reserve(state: Order, step: StepContext, there: Elsewhere) -> Result:
    return await there.ask("reserve", state, step)


async def release(state: Order, step: StepContext, there: Elsewhere) -> Result:
    return await there.ask("release", state, step)


async def hold(state: Order, tx: Transaction, step: StepContext) -> Result:
    written = await _write("hold", state, tx, step)
    if state.refused == "hold":
        raise StepRefused("there is none left")  # what was written is rolled back
    return written


async def free(state: Order, tx: Transaction, step: StepContext) -> Result:
    return await _write("free", state, tx, step)


async def pay(state: Order, step: StepContext, there: Elsewhere) -> Result:
    if state.refused == "pay":
        raise StepRefused("the bank refuses it")
    return await there.ask("pay", state, step)


async def note(state: Order, tx: Transaction, step: StepContext) -> Result:
    return await _write("note", state, tx, step)


async def tell(state: Order, step: StepContext, there: Elsewhere) -> Result:
    return await there.ask("tell", state, step)


ORDER: Final = Saga(
    "order",
    Order,
    [
        compensatable(debit, undo=credit_back, retry=PATIENT, undo_retry=PATIENT),
        compensatable(reserve, undo=release, timeout=5, retry=PATIENT, undo_retry=PATIENT),
        compensatable(hold, undo=free, retry=PATIENT, undo_retry=PATIENT),
        pivot(pay, timeout=5, retry=PATIENT),
        retriable(note, retry=PATIENT),
        retriable(tell, timeout=5, retry=PATIENT),
    ],
)


@dataclass(frozen=True)
class Expected:
    """What a saga leaves behind: in the database, at the receiver, and in its history, each in its order."""

    status: str
    local: list[str]
    remote: list[str]
    done: list[tuple[str, str]]

    @property
    def all(self) -> Counter[str]:
        return Counter([*self.local, *self.remote])


def _done(forward: str, back: str = "") -> list[tuple[str, str]]:
    return [(step, "action") for step in forward.split()] + [(step, "undo") for step in back.split()]


EXPECTED: Final = {
    "": Expected(
        "completed", ["debit", "hold", "note"], ["reserve", "pay", "tell"], _done("debit reserve hold pay note tell")
    ),
    "hold": Expected(
        "compensated", ["debit", "credit_back"], ["reserve", "release"], _done("debit reserve", "reserve debit")
    ),
    "pay": Expected(
        "compensated",
        ["debit", "hold", "free", "credit_back"],
        ["reserve", "release"],
        _done("debit reserve hold", "hold reserve debit"),
    ),
}


def refused_at(number: int) -> Literal["", "hold", "pay"]:
    kinds: tuple[Literal["", "hold", "pay"], ...] = ("", "hold", "", "pay", "")
    return kinds[number % len(kinds)]
