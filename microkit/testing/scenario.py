"""Scenarios: a saga told as given, when, expect, on the real engine and a real database, in virtual time.

::

    def test_a_payment_that_is_refused_gives_the_bill_back() -> None:
        (
            scenario(pay_bill, tables=Base.metadata)
            .given(Billing.reserve, answers(bill))
            .given(Billing.release, times_out(), answers(bill))
            .offering(Cashier, PoorCashier())
            .when(PayBill(payment_id=…, bill_id=bill.id))
            .expect(
                done(start_payment, reserve_bill),
                refused(submit_payment),
                timed_out(reserve_bill, undo=True),
                undone(reserve_bill, start_payment),
                compensated("not enough money"),
            )
        )

Only other services are faked. What a scenario says is run from its beginning, on an empty database in memory, by each
``expect`` and by ``run``; time passes as the saga needs it, so that a day of waiting takes milliseconds. It is called
from an ordinary test function, and brings its own event loop.
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from typing import Any, Final, Generic, Self, TypeVar, cast
from uuid import UUID, uuid4

import sqlalchemy as sa
from pydantic import BaseModel
from sqlalchemy.orm import make_transient

from microkit.contract import Contract, Operation, P
from microkit.db import Database, database_now
from microkit.db.migration import create_tables
from microkit.errors import DefinitionError
from microkit.injection import bare
from microkit.message import IN_REPLY_TO, Event, Message
from microkit.outbox import install
from microkit.outbox.tables import metadata as outbox_tables
from microkit.outbox.tables import outbox
from microkit.saga import Saga, SagaEngine
from microkit.saga.replies import Replies, expected_by
from microkit.saga.step import Failure, hints_of
from microkit.saga.tables import Status
from microkit.saga.tables import metadata as saga_tables
from microkit.saga.tables import saga as saga_table
from microkit.saga.view import SagaStory, show_saga
from microkit.telemetry import Telemetry
from microkit.testing.clock import VirtualClock, run_virtually
from microkit.testing.expectation import (
    Expectation,
    Happened,
    Outcome,
    called,
    compensated,
    complaints,
    completed,
    done,
    failed,
    holds,
    published,
    refused,
    state,
    stuck,
    timed_out,
    took,
    undone,
    waiting,
)
from microkit.testing.stub import (
    Answer,
    Stub,
    answers,
    breaks_off,
    check_answers,
    does,
    refuses,
    times_out,
    unreachable,
)

__all__ = [
    "Outcome",
    "Scenario",
    "answers",
    "breaks_off",
    "called",
    "compensated",
    "completed",
    "does",
    "done",
    "failed",
    "holds",
    "published",
    "refused",
    "refuses",
    "scenario",
    "state",
    "stuck",
    "timed_out",
    "times_out",
    "took",
    "undone",
    "unreachable",
    "waiting",
]

State = TypeVar("State", bound=BaseModel)
R = TypeVar("R")
T = TypeVar("T")

_SERVICE: Final = "scenario"

# Nobody dies in a scenario and nobody else works on its database: an idle engine need not look up.
_FOR_EVER: Final = 1e7

LIMIT: Final = timedelta(days=400)
"""Virtual time after which a saga that has not come to rest is taken for one that never does."""

_LOOK: Final = 0.01
_SLOWEST_LOOK: Final = 3600.0


def scenario(saga: Saga[State], *, tables: sa.MetaData | None = None) -> Scenario[State]:
    """A scenario of one saga. ``tables`` are those that its local steps use."""
    return Scenario(_Said(saga, tables))


@dataclass(frozen=True, slots=True)
class _Said(Generic[State]):
    """What a scenario says."""

    saga: Saga[State]
    tables: sa.MetaData | None = None
    answers: Mapping[Operation[..., Any], Sequence[Answer[Any]]] = field(default_factory=dict)
    resources: Mapping[Any, object] = field(default_factory=dict)
    rows: Sequence[object] = ()
    script: Sequence[State | Event | float] = ()


class Scenario(Generic[State]):
    """What is given, and what happens then. Each method returns a new scenario that says one thing more."""

    def __init__(self, said: _Said[State], *, loose: bool = False) -> None:
        self._said = said
        self._loose = loose

    def given(self, operation: Operation[P, R], *script: Answer[R]) -> Scenario[State]:
        """What another service answers, in turn; the last answer stays.

        Raises:
            DefinitionError: the operation does not declare a problem among them.
        """
        check_answers(operation, script)
        return self._more(answers={**self._said.answers, operation: script})

    def offering(self, kind: type[T], resource: T) -> Scenario[State]:
        """A resource that steps ask for by its type."""
        return self._more(resources={**self._said.resources, kind: resource})

    def having(self, *rows: object) -> Scenario[State]:
        """Rows of the service's own tables (objects of the mapped classes) that are there before."""
        return self._more(rows=(*self._said.rows, *rows))

    def when(self, what: State | Event) -> Scenario[State]:
        """The saga is started with a state, or an event arrives that it waits for; the reply to a command is one, too.

        It then goes on until it rests: it has ended, is stuck, or waits for an event.

        Raises:
            DefinitionError: it is not started with that, or does not wait for such an event.
        """
        self._loose = False
        saga = self._said.saga
        if isinstance(what, Event):
            if not any(type(what) in expected.events for expected in expected_by([saga])):
                raise DefinitionError(f"{saga.name} never waits for {type(what).__name__}")
        elif not isinstance(what, saga.state):
            raise DefinitionError(f"{saga.name} is started with a {saga.state.__name__}, not {what!r:.80}")
        return self._more(script=(*self._said.script, what))

    def after(self, *, days: float = 0, hours: float = 0, minutes: float = 0, seconds: float = 0) -> Scenario[State]:
        """So much time passes, and no more: what then is still under way stays so."""
        time = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds).total_seconds()
        return self._more(script=(*self._said.script, time))

    def expect(self, *expectations: Expectation) -> Scenario[State]:
        """Runs what has been said, and compares.

        Raises:
            AssertionError: it is not as expected. The message tells all differences and the saga's story.
        """
        self._run(expectations)
        return Scenario(self._said)

    def run(self) -> Outcome[State]:
        """Runs what has been said, for a test that wants to look for itself. Its database is closed then."""
        return self._run(())

    def _run(self, expectations: Sequence[Expectation]) -> Outcome[State]:
        self._loose = False
        said = self._said
        if not any(isinstance(item, said.saga.state) for item in said.script):
            raise DefinitionError(f"a scenario of {said.saga.name} begins with .when(): the state that it starts with")

        async def work(clock: VirtualClock) -> Outcome[State]:
            async with _Stage(said) as stage:
                outcome = await stage.play()
                if found := await complaints(expectations, outcome):
                    told = "\n".join(f"- {complaint}" for complaint in found)
                    raise AssertionError(f"{said.saga.name} did not go as expected:\n{told}\n\n{outcome.story()}")
            return outcome

        return run_virtually(work)

    def _more(self, **changes: Any) -> Scenario[State]:
        self._loose = False
        said = replace(self._said, **changes)
        return Scenario(said, loose=bool(said.script))

    def __del__(self) -> None:
        if getattr(self, "_loose", False):  # as of a coroutine that was never awaited
            name = self._said.saga.name
            warnings.warn(f"a scenario of {name} was never run: end it with .expect(...)", RuntimeWarning, stacklevel=1)


class _Stage(Generic[State]):
    """One run of a scenario: a database in memory, an engine, and stubs for the others."""

    def __init__(self, said: _Said[State]) -> None:
        self._said = said
        self._saga = said.saga
        self._telemetry = Telemetry(_SERVICE, sampling=0.0)
        self._database = Database("sqlite+aiosqlite:///:memory:", telemetry=self._telemetry, pool_timeout=_FOR_EVER)
        self._stub = Stub()
        for operation, script in said.answers.items():
            self._stub.script(operation, script)
        stubs = {contract: contract(self._stub) for contract in _contracts(said.saga)}
        resources = {**stubs, **said.resources}
        self._engine = SagaEngine(
            self._database, self._telemetry, [said.saga], resources, lease=_FOR_EVER, poll=_FOR_EVER
        )
        self._replies = Replies(self._telemetry)
        self._saga_id: UUID | None = None

    async def __aenter__(self) -> Self:
        install(self._database, _SERVICE)
        await self._database.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._engine.stop(timeout=0.0)
        await self._database.close()
        await self._telemetry.close()

    async def _prepare(self) -> None:
        """Makes the tables and the rows that are there before."""
        tables, rows = self._said.tables, self._said.rows
        own = [tables] if tables is not None else []
        own += [type(row).metadata for row in rows if type(row).metadata not in own]  # type: ignore[attr-defined]  # rows are of mapped classes
        await create_tables(self._database, [saga_tables, outbox_tables, *own])
        for row in rows:
            make_transient(row)  # an earlier run of the scenario has stored it elsewhere
        if rows:
            async with self._database.transaction() as tx:
                tx.add_all(rows)

    async def play(self) -> Outcome[State]:
        """Does one thing after the other; after what happens, the saga comes to rest, unless time is to pass."""
        await self._prepare()
        await self._engine.start()
        script = self._said.script
        for index, item in enumerate(script):
            if isinstance(item, float):
                await asyncio.sleep(item)
                self._foreseen()
                continue
            if isinstance(item, Event):
                await self._arrive(item)
            else:
                await self._begin(item)
            if index + 1 == len(script) or not isinstance(script[index + 1], float):
                await self._rest()
        return await self._outcome()

    async def _begin(self, state: State) -> None:
        if self._saga_id is not None:
            raise DefinitionError(f"{self._saga.name} is started once in a scenario")
        self._saga_id = uuid4()
        await self._database.run(lambda tx: self._saga.start(tx, state, saga_id=self._saga_id))

    async def _arrive(self, event: Event) -> None:
        """As if the bus brought it; a reply says of itself which saga and step it answers."""
        for expected in expected_by([self._saga]):
            if type(event) in expected.events:
                message = event.to_message("elsewhere", trace={IN_REPLY_TO: f"{self._saga_id}:{expected.place}"})
                await self._database.run(partial(self._replies.handle, expected, event, message))

    async def _rest(self) -> None:
        look = _LOOK
        async with asyncio.timeout(LIMIT.total_seconds()):
            while (due := await self._due()) is not None:
                self._foreseen()
                await asyncio.sleep(max(look, due))
                look = min(_SLOWEST_LOOK, look * 2)
        self._foreseen()

    async def _due(self) -> float | None:
        """Seconds until the saga goes on, below 0 while it does; ``None`` where it goes on by nobody's hand but an
        operator's, or by an event that it waits for."""
        row = sa.select(saga_table.c.next_at, saga_table.c.lease_owner, database_now())
        async with self._database.transaction(read_only=True) as tx:  # one, for the saga goes on meanwhile
            story = await show_saga(tx, cast("UUID", self._saga_id))
            next_at, owner, now = (await tx.execute(row.where(saga_table.c.id == story.id))).one()
        waited = [wait.due for wait in story.waits if wait.status == "waiting"]
        if next_at is None or (owner is None and waited and min(waited) <= next_at):
            return None
        return (next_at - now).total_seconds() if owner is None else 0.0

    def _foreseen(self) -> None:
        if self._stub.missing is not None:
            raise AssertionError(str(self._stub.missing))
        if (error := self._engine.health().error) is not None:
            raise AssertionError(f"the saga engine cannot work: {error}")

    async def _story(self) -> SagaStory:
        saga_id = cast("UUID", self._saga_id)
        return await self._database.run(lambda tx: show_saga(tx, saga_id), read_only=True)

    async def _outcome(self) -> Outcome[State]:
        story = await self._story()
        async with self._database.transaction(read_only=True) as tx:
            columns = (outbox.c.aggregatetype, outbox.c.aggregateid, outbox.c.payload, outbox.c.headers)
            written = (await tx.execute(sa.select(*columns).order_by(outbox.c.seq))).all()
        ended = [step for step in story.steps if step.ended_at is not None]
        last = max((step.ended_at for step in ended if step.ended_at), default=story.created_at)
        return Outcome(
            saga_id=story.id,
            status=Status(story.status),
            step=story.step,
            state=self._saga.load(story.state),
            steps=[Happened(step.step, step.direction, step.status, step.attempt, step.error) for step in ended],
            failure=Failure(**story.failure.model_dump()) if story.failure else None,
            error=story.error,
            published=[Message(*row) for row in written],
            calls=list(self._stub.calls),
            took=last - story.created_at,
            database=self._database,
        )


def _contracts(saga: Saga[Any]) -> set[type[Contract]]:
    """The contracts whose clients the steps ask for."""
    found: set[type[Contract]] = set()
    for step in saga.steps:
        for function in (step.action, step.undo):
            if function is not None:
                kinds = map(bare, hints_of(step.name, function).values())
                found |= {kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Contract)}
    return found
