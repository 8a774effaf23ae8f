"""One attempt, ready to be carried out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from microkit.context import WorkContext
from microkit.db import Transaction
from microkit.errors import MicrokitError
from microkit.saga.binding import BoundSaga, Scope
from microkit.saga.definition import Saga, told
from microkit.saga.progress import DONE, Attempt, Outcome, after
from microkit.saga.step import Retry, StepContext
from microkit.saga.store import Held, Transition, record
from microkit.saga.tables import Direction


class Unfit(MicrokitError):
    """The stored state does not fit its model: the code has changed under a running saga."""


class Work:
    """The next attempt of ``held``."""

    def __init__(self, bound: BoundSaga, held: Held) -> None:
        saga: Saga[Any] = bound.saga
        step = saga.steps[saga.positions[held.step]]
        undo = held.direction is Direction.UNDO
        local = step.undo_local if undo else step.action_local
        self.saga = saga
        self.held = held
        self.attempt = Attempt(step, held.direction, held.attempts, local, held.failure, held.waited)
        self.retry: Retry = step.undo_retry if undo else step.retry
        self.title = f"saga {saga.name} {'undo ' if undo else ''}{step.name}"
        self.attributes: dict[str, str | int] = {
            "saga": saga.name,
            "saga_id": str(held.id),
            "saga_step": held.step,
            "saga_direction": held.direction,
            "saga_attempt": held.attempts,
        }
        """For spans and log lines."""
        self._call = bound.calls[step.name, held.direction]
        self._key = f"{held.id}:{step.name}{':undo' if undo else ''}"

    @property
    def context(self) -> WorkContext:
        """What the step's calls carry. They go in the service's own name: the starter's token may have expired."""
        carried = self.held.context
        return WorkContext(
            request_id=carried.get("request_id") or "",
            tenant=carried.get("tenant"),
            idempotency_key=self._key,
            critical=True,
        )

    async def effect(self, tx: Transaction | None) -> Any:
        """Calls the step; the state that it leaves, as JSON.

        Raises:
            Unfit: the state it begins with does not fit.
        """
        try:
            state = self.saga.load(self.held.state)
        except ValidationError as error:
            raise Unfit(f"the stored state does not fit {self.saga.state.__name__}: {told(error)}") from None
        held = self.held
        context = StepContext(held.id, held.step, held.attempts, held.failure, self._key)
        result = await self._call(Scope(state, context, tx))
        return self.saga.dump(_state_after(self.saga, state, result))

    async def effect_and_progress(self, tx: Transaction) -> Held | None:
        """Calls a local step and moves the saga on, in one transaction. Returns the saga if it goes on at once.

        Raises:
            LeaseLost: it was lost; nothing may be committed.
        """
        return await record(tx, self.transition(DONE, await self.effect(tx)))

    def transition(self, outcome: Outcome, state: Any) -> Transition:
        return Transition(self.held, self.attempt, outcome, after(self.saga, self.attempt, outcome), state)


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
