"""The steps of all sagas with their parameters bound, once, before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Any

from pydantic import BaseModel

from microkit.db import Transaction
from microkit.errors import DefinitionError
from microkit.injection import Bound, Getter, bind
from microkit.message import Event
from microkit.saga.awaiting import Awaited, OnTimeout, Then
from microkit.saga.definition import Saga
from microkit.saga.step import Action, StepContext
from microkit.saga.tables import Direction


@dataclass(frozen=True, slots=True)
class Scope:
    """What the parameters of one attempt are taken from. ``tx`` is there in local steps only, ``event`` where one was
    awaited."""

    state: BaseModel
    context: StepContext
    tx: Transaction | None
    event: Event | None = None


@dataclass(frozen=True, slots=True)
class BoundSaga:
    """A definition that can be run."""

    saga: Saga[Any]
    calls: Mapping[tuple[str, Direction], Bound[Scope]]
    notes: Mapping[Then, Bound[Scope]]
    """What is called when an event has come, or its time is over."""


def bind_sagas(sagas: Sequence[Saga[Any]], resources: Mapping[Any, object]) -> dict[str, BoundSaga]:
    """All sagas, by fingerprint. ``resources`` are what steps may ask for by type.

    Raises:
        DefinitionError: a step asks for something that is not there, or two definitions have one name and version.
    """
    bound: dict[str, BoundSaga] = {}
    versions: dict[tuple[str, int], Saga[Any]] = {}
    for saga in sagas:
        known = versions.setdefault((saga.name, saga.version), saga)
        if known is not saga:
            raise DefinitionError(
                f"saga {saga.name!r} has two definitions of version {saga.version}: give one version="
            )
        by_type: dict[Any, Getter[Scope]] = {kind: _constant(value) for kind, value in resources.items()}
        by_type |= {saga.state: _state, StepContext: _context, Transaction: _transaction}
        calls: dict[tuple[str, Direction], Bound[Scope]] = {}
        notes: dict[Then, Bound[Scope]] = {}
        for step in saga.places.values():
            calls[step.name, Direction.ACTION] = _bind(step.action, by_type)
            if step.undo is not None:
                calls[step.name, Direction.UNDO] = _bind(step.undo, by_type)
            for awaits in (step.awaits, step.undo_awaits):
                if awaits is not None:
                    notes |= _bind_notes(awaits, by_type)
        bound[saga.fingerprint] = BoundSaga(saga, calls, notes)
    return bound


def _bind_notes(awaits: Awaited, by_type: Mapping[Any, Getter[Scope]]) -> dict[Then, Bound[Scope]]:
    late = {} if isinstance(awaits.on_timeout, OnTimeout) else {awaits.on_timeout: _bind(awaits.on_timeout, by_type)}
    if awaits.then is None:
        return late
    kinds: list[Any] = [*awaits.events, reduce(or_, awaits.events)]
    with_event = {**by_type, **dict.fromkeys(kinds, _event)}
    return late | {awaits.then: bind(awaits.then, by_name={"state": _state, "event": _event}, by_type=with_event)}


def _bind(function: Action, by_type: Mapping[Any, Getter[Scope]]) -> Bound[Scope]:
    return bind(function, by_name={"state": _state}, by_type=by_type)


def _constant(value: object) -> Getter[Scope]:
    return lambda _: value


def _state(scope: Scope) -> BaseModel:
    return scope.state


def _context(scope: Scope) -> StepContext:
    return scope.context


def _event(scope: Scope) -> Event | None:
    return scope.event


def _transaction(scope: Scope) -> Transaction | None:
    return scope.tx
