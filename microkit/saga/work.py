"""One attempt, ready to be carried out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from pydantic import BaseModel, ValidationError

from microkit.context import WorkContext
from microkit.db import Transaction
from microkit.errors import DefinitionError, MicrokitError
from microkit.message import IN_REPLY_TO, Event
from microkit.saga.awaiting import Awaited, Then
from microkit.saga.binding import BoundSaga, Scope
from microkit.saga.definition import Saga, told
from microkit.saga.progress import DONE, Attempt, Ended, Outcome, after
from microkit.saga.step import Retry, Step, StepContext
from microkit.saga.store import Held, Transition, decide, record
from microkit.saga.tables import Direction
from microkit.saga.waits import place_of


class Unfit(MicrokitError):
    """The saga cannot be gone on with as it stands: its stored state does not fit its model, for the code has changed
    under it, or what was decided over it makes no sense."""


class Work:
    """The next attempt of ``held``, or of a ``branch`` of the group that it is at, with a ``number`` of its own."""

    def __init__(self, bound: BoundSaga, held: Held, branch: Step | None = None, number: int = 0) -> None:
        saga: Saga[Any] = bound.saga
        step = branch or saga.steps[saga.positions[held.step]]
        number = number or held.attempts
        undo = held.direction is Direction.UNDO
        local = step.undo_local if undo else step.action_local
        self.bound = bound
        self.saga = saga
        self.held = held
        self.attempt = Attempt(step, held.direction, number, local, held.failure, held.waited, held.skipped)
        self.retry: Retry = step.undo_retry if undo else step.retry
        self.awaits: Awaited | None = step.undo_awaits if undo else step.awaits
        self.title = f"saga {saga.name} {'undo ' if undo else ''}{step.name}"
        self.attributes: dict[str, str | int] = {
            "saga": saga.name,
            "saga_id": str(held.id),
            "saga_step": step.name,
            "saga_direction": held.direction,
            "saga_attempt": number,
        }
        """For spans and log lines."""
        self.place = place_of(step.name, held.direction)
        self.key = f"{held.id}:{self.place}"
        """What this step of this saga is known by elsewhere: the same in every attempt."""
        self.may_have_happened = self.awaits is not None and held.not_yet_since is not None
        """Of a step that waits: it has asked, or what it waits for has come, in a transaction that stands."""

    @property
    def context(self) -> WorkContext:
        """What the step's calls carry. They go in the service's own name: the starter's token may have expired."""
        carried = self.held.context
        answers = carried.get("in_reply_to")
        return WorkContext(
            request_id=carried.get("request_id") or "",
            tenant=carried.get("tenant"),
            idempotency_key=self.key,
            critical=True,  # a saga that is turned away half-way costs more than one that is not begun
            event_headers={IN_REPLY_TO: answers} if answers else None,
        )

    @property
    def is_undecided(self) -> bool:
        """Whether the step has a condition that has not been asked yet."""
        step, held = self.attempt.step, self.held
        return step.when is not None and held.direction is Direction.ACTION and step.name not in (held.decisions or {})

    def is_needed(self) -> bool:
        """Asks the step's condition.

        Raises:
            Unfit: the state does not fit, or the condition failed: being a plain function it would fail each time.
        """
        when, state = self.attempt.step.when, self.state()
        try:
            return when is None or bool(when(state))
        except Exception as error:
            name = self.attempt.step.name
            raise Unfit(f"the condition of {name!r} failed: {type(error).__name__}: {error}") from error

    def state(self) -> BaseModel:
        """The state that the attempt begins with.

        Raises:
            Unfit: what is stored does not fit.
        """
        try:
            state: BaseModel = self.saga.load(self.held.state)
        except ValidationError as error:
            raise Unfit(f"the stored state does not fit {self.saga.state.__name__}: {told(error)}") from None
        return state

    @property
    def step_context(self) -> StepContext:
        attempt = self.attempt
        return StepContext(self.held.id, attempt.step.name, attempt.number, attempt.failure, self.key)

    async def effect(self, tx: Transaction | None) -> Any:
        """Calls the step; the state that it leaves, as JSON.

        Raises:
            Unfit: the state it begins with does not fit.
        """
        state = self.state()
        call = self.bound.calls[self.attempt.step.name, self.held.direction]
        with _unbroken(tx):
            result = await call(Scope(state, self.step_context, tx))
        return self._dump(state, result)

    async def note(self, function: Then, state: BaseModel, tx: Transaction, event: Event | None) -> Any:
        """Calls what takes note of an event, or of its absence; the state that it leaves, as JSON."""
        with _unbroken(tx):
            result = await self.bound.notes[function](Scope(state, self.step_context, tx, event))
        return self._dump(state, result)

    def _dump(self, state: BaseModel, result: object) -> Any:
        return self.saga.dump(_state_after(self.saga, state, result))

    async def progress(self, tx: Transaction) -> Transition:
        """Calls a local step; the transition that is to be written in the same transaction."""
        return self.transition(DONE, await self.effect(tx))

    async def effect_and_progress(self, tx: Transaction) -> Held | None:
        """Calls a local step and moves the saga on, in one transaction. Returns the saga if it goes on at once.

        Raises:
            LeaseLost: it was lost; nothing may be committed.
        """
        return await record(tx, await self.progress(tx))

    async def decide(self, tx: Transaction) -> Held:
        """Writes down that the step is needed.

        Raises:
            LeaseLost: it was lost.
        """
        return await decide(tx, self.held, needed=True)

    async def skip(self, tx: Transaction) -> tuple[Transition, Held | None]:
        """Writes down that the step is not needed, and moves the saga on.

        Raises:
            LeaseLost: it was lost; nothing may be committed.
        """
        held = await decide(tx, self.held, needed=False)
        outcome = Outcome(Ended.SKIPPED, f"not needed: {getattr(self.attempt.step.when, '__name__', 'when')}")
        transition = Work(self.bound, held).transition(outcome, held.state)
        return transition, await record(tx, transition)

    def doubted(self, outcome: Outcome) -> Outcome:
        """``outcome`` of an attempt that was rolled back. Of a step that waits it says nothing about what it has asked
        for, or what has come; a refusal does."""
        if self.awaits is None or outcome.ended is Ended.REFUSED:
            return outcome
        return replace(outcome, own=outcome.own or self.may_have_happened)

    def transition(self, outcome: Outcome, state: Any) -> Transition:
        return Transition(self.held, self.attempt, outcome, after(self.saga, self.attempt, outcome), state)


@contextmanager
def _unbroken(tx: Transaction | None) -> Iterator[None]:
    """Sees to it that what a step does is committed with its saga's progress, or not at all: a rollback by hand takes
    it away, with what others did in the same transaction, and the progress would be committed alone."""
    if tx is None:
        yield
        return
    session = tx.session.sync_session
    begun = session.get_transaction() or session.begin()
    yield
    if session.get_transaction() is not begun:
        raise DefinitionError(
            "the step rolled its transaction back by hand. Raise instead, such as StepRefused, or put what may fail "
            "into `async with tx.session.begin_nested()`"
        )


def _state_after(saga: Saga[Any], state: BaseModel, result: object) -> BaseModel:
    if result is None:
        return state  # as the step may have changed it
    if isinstance(result, BaseModel):
        return result  # of the right type, or dump() refuses it
    if not isinstance(result, Mapping):
        kind = type(result).__name__
        raise TypeError(f"a step returns {saga.state.__name__}, a dictionary of changed fields or None, not {kind}")
    unknown = [name for name in result if name not in saga.state.model_fields]
    if unknown:
        raise TypeError(f"{saga.state.__name__} has no field {unknown[0]!r}")
    return state.model_copy(update=result)
