"""What is refused while a definition loads: sagas that might not end, with what to write instead."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations, pairwise
from typing import Any, get_args

from pydantic import BaseModel

from microkit.errors import DefinitionError
from microkit.injection import bare
from microkit.message import Event
from microkit.saga.awaiting import Awaited
from microkit.saga.limits import Limits
from microkit.saga.state_use import leaves, needs, reads
from microkit.saga.step import Step, StepKind, hints_of, required_of

_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*\Z")
_ORDER = {StepKind.COMPENSATABLE: 0, StepKind.PIVOT: 1, StepKind.RETRIABLE: 2}


def lint(name: str, version: int, state: type[BaseModel], steps: Sequence[Step], limits: Limits) -> None:
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
    _check_names(where, steps)
    _check_order(where, steps)
    for step in [part for each in steps for part in (each, *each.branches)]:
        here = f"{where}, step {step.name!r}"
        for function in (*step.functions, *step.undo_functions):
            _check_types(here, hints_of(step.name, function), state)
        for awaits in (step.awaits, step.undo_awaits):
            if awaits is not None:
                _check_awaits(here, awaits, state, step.name)
        if step.when is not None:
            _check_reads(here, "its condition", step.when, state)
    _check_merged(where, steps, state)
    _check_known(where, steps, state)
    _check_needs(where, steps, state)
    _check_limits(where, limits, state)


def _check_names(where: str, steps: Sequence[Step]) -> None:
    for each in steps:
        if isinstance(each, Awaited):
            raise DefinitionError(
                f"{where}: what is awaited is a step once it says what becomes of it: "
                f"compensatable({each.title}, undo=...), pivot(...) or retriable(...)"
            )
    names = [each.name for step in steps for each in (step, *step.branches)]
    twice = sorted(step for step in set(names) if names.count(step) > 1)
    if twice:
        raise DefinitionError(f"{where} has two steps of the name {twice[0]!r}: tell them apart with name=")
    for name in names:
        if len(name) > 100:
            raise DefinitionError(
                f"{where}: the step {name[:40]}... has a name of {len(name)} letters: give it a name= of 100"
            )


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


def _check_awaits(where: str, awaits: Awaited, state: type[BaseModel], name: str) -> None:
    """What is awaited can be told from others, and whoever notes it can take it."""
    if awaits.by is not None and awaits.by[1] not in state.model_fields:
        raise DefinitionError(
            f"{where} waits for {_shown(awaits)} by {awaits.by[0]!r}, and {state.__name__} has no field "
            f"{awaits.by[1]!r} to compare with: add it, or name the field that holds it, "
            f"by=({awaits.by[0]!r}, 'the state's field')"
        )
    if awaits.command is not None:
        _check_reads(where, "its command", awaits.command, state)
    if awaits.then is None:
        return
    for parameter, hint in hints_of(name, awaits.then).items():
        taken = get_args(kind) or (kind,) if (kind := bare(hint)) is not None else ()
        events = [each for each in taken if inspect.isclass(each) and issubclass(each, Event)]
        missing = [each.__name__ for each in awaits.events if not issubclass(each, tuple(events))] if events else []
        if parameter != "return" and missing:
            raise DefinitionError(
                f"{where}: {awaits.then.__name__} takes {parameter}: {' | '.join(each.__name__ for each in events)} "
                f"and is also given {missing[0]}: write {parameter}: {_shown(awaits)}"
            )


def _shown(awaits: Awaited) -> str:
    return " | ".join(each.__name__ for each in awaits.events)


def _check_reads(where: str, what: str, function: Callable[..., Any], state: type[BaseModel]) -> None:
    for field in sorted(reads(function)):
        if field not in state.model_fields and not hasattr(state, field):
            raise DefinitionError(
                f"{where}: {what} reads state.{field}, and {state.__name__} has no such field; it has "
                f"{', '.join(state.model_fields)}"
            )


def _check_merged(where: str, steps: Sequence[Step], state: type[BaseModel]) -> None:
    """What the branches of a group leave is put together, so that no two may leave the same."""
    for step in steps:
        for one, other in combinations(step.branches, 2):
            for what in (("functions", "they are done"), ("undo_functions", "they are undone")):
                both = _left(getattr(one, what[0]), state) or set()
                both &= _left(getattr(other, what[0]), state) or set()
                if both:
                    raise DefinitionError(
                        f"{where}: {one.name!r} and {other.name!r} of one parallel group both leave "
                        f"{sorted(both)[0]!r} when {what[1]}: give each a field of its own, "
                        "or carry them out one after the other"
                    )


def _left(functions: Iterable[Callable[..., Any]], state: type[BaseModel]) -> set[str] | None:
    """The fields that may be left changed by one of ``functions``; ``None``: any."""
    left: set[str] = set()
    for function in functions:
        fields = leaves(function, state)
        if fields is None:
            return None
        left |= fields
    return left


def _left_by(step: Step, state: type[BaseModel]) -> set[str] | None:
    return _left((each for part in (step, *step.branches) for each in part.functions), state)


def _unknown_at_first(state: type[BaseModel]) -> set[str]:
    """Fields whose default is ``None`` stand for what is not known yet."""
    return {name for name, field in state.model_fields.items() if not field.is_required() and field.default is None}


def _check_known(where: str, steps: Sequence[Step], state: type[BaseModel]) -> None:
    """What an event is told by is known when the saga begins to wait for it."""
    known: set[str] = set(state.model_fields) - _unknown_at_first(state)
    for step in steps:
        for part in (step, *step.branches):
            if part.awaits is None or part.awaits.by is None or part.awaits.by[1] in known:
                continue
            told, field = part.awaits.by
            raise DefinitionError(
                f"{where}, step {part.name!r} waits for {_shown(part.awaits)} by {told!r}, and no step before leaves "
                f"state.{field}: have one return {{{field!r}: ...}}, or make the field required where it starts with it"
            )
        left = _left_by(step, state)
        if left is None:
            return  # it may leave anything
        known |= left


def _check_needs(where: str, steps: Sequence[Step], state: type[BaseModel]) -> None:
    """A compensation finds what was left by the steps up to its own, and what the starter gave. A field whose default
    is ``None`` stands for what is not known yet: one that nobody has left by then is ``None`` to the compensation."""
    unknown = _unknown_at_first(state)
    if not unknown:
        return
    for position, step in enumerate(steps):
        for part in step.branches or (step,):
            wanted = {field for each in part.undo_functions for field in needs(each, state)} & unknown
            # What other branches of its group leave may not be there.
            before = [_left_by(each, state) for each in (*steps[:position], part)] if wanted else []
            if None in before:  # one of them may leave anything
                continue
            for name in sorted(wanted - {name for left in before if left is not None for name in left}):
                later = [each.name for each in steps[position + 1 :] if name in (_left_by(each, state) or ())]
                raise DefinitionError(_unmet(where, part, name, later))


def _check_limits(where: str, limits: Limits, state: type[BaseModel]) -> None:
    if limits.key is not None:
        key: Any = limits.key
        if not callable(key) or inspect.iscoroutinefunction(key) or required_of(key) != 1:
            raise DefinitionError(
                f"{where}: key= is a plain function of the state, such as key=lambda state: f'bill:{{state.bill_id}}'"
            )
        _check_reads(where, "its key", limits.key, state)
    if limits.on_busy not in ("wait", "refuse"):
        raise DefinitionError(f'{where}: on_busy={limits.on_busy!r}; a second saga can "wait" or "refuse" to start')
    if limits.on_busy == "refuse" and limits.key is None and limits.rate is None:
        raise DefinitionError(
            f'{where} has on_busy="refuse" and nothing that can be busy: give it key=, what a saga is about, or rate='
        )
    if limits.concurrency is not None and limits.concurrency < 1:
        raise DefinitionError(
            f"{where}: concurrency={limits.concurrency}: at least one saga has to be at work to get on"
        )
    if limits.rate is not None and limits.rate.each == "key" and limits.key is None:
        raise DefinitionError(f"{where} has a rate for each key and no key: give it key=, what a saga is about")


def _unmet(where: str, step: Step, field: str, later: Sequence[str]) -> str:
    undo = step.undo_functions[0].__name__
    who = f"only {later[0]!r} does, which comes after it" if later else "no step does"
    return (
        f"{where}, step {step.name!r}: its compensation {undo} needs state.{field}, which neither {step.name!r} nor a "
        f"step before it leaves ({who}): have {step.name!r} return {{{field!r}: ...}}, make the field required "
        f"if the saga starts with it, or have {undo} ask whether it is None"
    )
