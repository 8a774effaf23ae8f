"""What is refused while a definition loads: sagas that might not end, with what to write instead."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from pydantic import BaseModel

from microkit.errors import DefinitionError
from microkit.saga.state_use import leaves, needs
from microkit.saga.step import Step, StepKind, hints_of

_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*\Z")
_ORDER = {StepKind.COMPENSATABLE: 0, StepKind.PIVOT: 1, StepKind.RETRIABLE: 2}


def lint(name: str, version: int, state: type[BaseModel], steps: Sequence[Step]) -> None:
    """Refuses a definition whose sagas might not end.

    Raises:
        DefinitionError: what it is, and what to write instead.
    """
    where = f"saga {name!r}"
    if not _NAME.match(name):
        raise DefinitionError(f"{where}: the name is lower-case words joined by dashes, such as 'pay-bill'")
    if version < 1:
        raise DefinitionError(f"{where}: version={version}; versions count from 1")
    if not steps:
        raise DefinitionError(f"{where} has no steps")
    names = [step.name for step in steps]
    twice = sorted(step for step in set(names) if names.count(step) > 1)
    if twice:
        raise DefinitionError(f"{where} has two steps of the name {twice[0]!r}: tell them apart with name=")
    _check_order(where, steps)
    for step in steps:
        for function in (step.action, step.undo):
            if function is not None:
                _check_types(f"{where}, step {step.name!r}", hints_of(step.name, function), state)
    _check_needs(where, steps, state)


def _check_order(where: str, steps: Sequence[Step]) -> None:
    pivots = [step.name for step in steps if step.kind is StepKind.PIVOT]
    if len(pivots) > 1:
        raise DefinitionError(
            f"{where} has {len(pivots)} pivots ({', '.join(pivots)}): there is one point of no return; "
            "make those before it compensatable and those after it retriable"
        )
    for before, after in pairwise(steps):
        if _ORDER[before.kind] <= _ORDER[after.kind]:
            continue
        if after.kind is StepKind.PIVOT:
            advice = f"move it before {before.name!r}, or make {before.name!r} compensatable by giving it an undo"
        else:
            advice = f"make it retriable, or move it before {before.name!r}"
        raise DefinitionError(f"{where}: {after.name!r} is {after.kind} and follows a {before.kind} step: {advice}")


def _check_types(where: str, hints: Mapping[str, Any], state: type[BaseModel]) -> None:
    result = hints.get("return")
    if inspect.isclass(result) and issubclass(result, BaseModel) and not issubclass(result, state):
        raise DefinitionError(
            f"{where} returns {result.__name__}; a step returns the saga's state ({state.__name__}), a dictionary "
            "of the fields that changed, or nothing"
        )
    taken = hints.get("state")
    if inspect.isclass(taken) and not issubclass(state, taken):
        raise DefinitionError(f"{where} takes state: {taken.__name__}; the saga's state is {state.__name__}")


def _check_needs(where: str, steps: Sequence[Step], state: type[BaseModel]) -> None:
    """A compensation finds what was left by the steps up to its own, and what the starter gave. A field whose default
    is ``None`` stands for what is not known yet: one that nobody has left by then is ``None`` to the compensation."""
    unknown = {name for name, field in state.model_fields.items() if not field.is_required() and field.default is None}
    if not unknown or not any(step.undo for step in steps):
        return
    for position, step in enumerate(steps):
        if step.undo is None or not (missing := needs(step.undo, state) & unknown):
            continue
        before = [leaves(each.action, state) for each in steps[: position + 1]]
        if None in before:  # one of them may leave anything
            continue
        missing -= {name for left in before if left is not None for name in left}
        for name in sorted(missing):
            later = [each.name for each in steps[position + 1 :] if name in (leaves(each.action, state) or ())]
            raise DefinitionError(_unmet(where, step, name, later))


def _unmet(where: str, step: Step, field: str, later: Sequence[str]) -> str:
    undo = step.undo.__name__ if step.undo is not None else ""
    who = f"only {later[0]!r} does, which comes after it" if later else "no step does"
    return (
        f"{where}, step {step.name!r}: its compensation {undo} needs state.{field}, which neither {step.name!r} nor a "
        f"step before it leaves ({who}): have {step.name!r} return {{{field!r}: ...}}, make the field required "
        f"if the saga starts with it, or have {undo} ask whether it is None"
    )
