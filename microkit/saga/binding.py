"""The steps of all sagas with their parameters bound, once, before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from microkit.db import Transaction
from microkit.errors import DefinitionError
from microkit.injection import Bound, Getter, bind
from microkit.saga.definition import Saga
from microkit.saga.step import Action, Step, StepContext
from microkit.saga.tables import Direction


@dataclass(frozen=True, slots=True)
class Scope:
    """What the parameters of one attempt are taken from. ``tx`` is there in local steps only."""

    state: BaseModel
    context: StepContext
    tx: Transaction | None


@dataclass(frozen=True, slots=True)
class BoundSaga:
    """A definition that can be run."""

    saga: Saga[Any]
    calls: Mapping[tuple[str, Direction], Bound[Scope]]

    def step(self, name: str) -> Step:
        return self.saga.steps[self.saga.positions[name]]


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
        for step in saga.steps:
            calls[step.name, Direction.ACTION] = _bind(step.action, by_type)
            if step.undo is not None:
                calls[step.name, Direction.UNDO] = _bind(step.undo, by_type)
        bound[saga.fingerprint] = BoundSaga(saga, calls)
    return bound


def _bind(function: Action, by_type: Mapping[Any, Getter[Scope]]) -> Bound[Scope]:
    return bind(function, by_name={"state": _state}, by_type=by_type)


def _constant(value: object) -> Getter[Scope]:
    return lambda _: value


def _state(scope: Scope) -> BaseModel:
    return scope.state


def _context(scope: Scope) -> StepContext:
    return scope.context


def _transaction(scope: Scope) -> Transaction | None:
    return scope.tx
