"""The kinds of steps: those that can be undone, the point of no return, those that succeed in the end."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, overload

from microkit.contract import Contract
from microkit.db import Transaction
from microkit.errors import DefinitionError
from microkit.injection import bare
from microkit.saga.awaiting import REFUSE, Awaited
from microkit.saga.step import (
    GIVE_UP_SOON,
    KEEP_TRYING,
    LOCAL_TIMEOUT,
    PATIENCE,
    Action,
    NoEffect,
    Retry,
    Step,
    StepKind,
    When,
    hints_of,
    nothing,
    required_of,
)


@overload
def compensatable(
    action: Action | Awaited,
    *,
    undo: Action | Awaited,
    timeout: float | None = None,
    retry: Retry = GIVE_UP_SOON,
    undo_retry: Retry = KEEP_TRYING,
    patience: float = PATIENCE,
    when: When | None = None,
    name: str | None = None,
) -> Step: ...
@overload
def compensatable(
    action: Action | Awaited,
    *,
    undo: NoEffect,
    timeout: float | None = None,
    retry: Retry = GIVE_UP_SOON,
    undo_retry: Retry = KEEP_TRYING,
    patience: float = PATIENCE,
    when: When | None = None,
    name: str | None = None,
) -> Step: ...
def compensatable(
    action: Action | Awaited,
    *,
    undo: Action | Awaited | NoEffect | None = None,
    timeout: float | None = None,
    retry: Retry = GIVE_UP_SOON,
    undo_retry: Retry = KEEP_TRYING,
    patience: float = PATIENCE,
    when: When | None = None,
    name: str | None = None,
) -> Step:
    """A step that can be undone.

    ``undo`` must do no harm where the action never happened: it also runs after attempts whose outcome nobody knows.
    A step that only reads has ``undo=NO_EFFECT``. ``when`` is a plain function of the state: where it says no, the step
    is skipped, and never undone.

    Raises:
        DefinitionError: it has no ``undo``, or it is as with any step: see ``Saga``.
    """
    if undo is None:
        raise DefinitionError(
            f"step {name or _title(action)!r} has no compensation: give it undo=, the function that takes its effect "
            "back, or undo=NO_EFFECT where it only reads"
        )
    compensation = None if isinstance(undo, NoEffect) else undo
    return _step(
        action, StepKind.COMPENSATABLE, compensation, _Bounds(timeout, retry, undo_retry, patience, when), name
    )


def pivot(
    action: Action | Awaited,
    *,
    timeout: float | None = None,
    retry: Retry = KEEP_TRYING,
    patience: float = PATIENCE,
    when: When | None = None,
    name: str | None = None,
) -> Step:
    """The point of no return: once it is done the saga goes on to its end, once it refuses the saga is compensated.

    A pivot in another system whose attempts all end unknown is parked as stuck: nobody can say which way is right.
    """
    return _step(action, StepKind.PIVOT, None, _Bounds(timeout, retry, KEEP_TRYING, patience, when), name)


def retriable(
    action: Action | Awaited,
    *,
    timeout: float | None = None,
    retry: Retry = KEEP_TRYING,
    patience: float = PATIENCE,
    when: When | None = None,
    name: str | None = None,
) -> Step:
    """A step that succeeds in the end. Every failure is retried, a refusal too, for there is no way back.

    Raises:
        DefinitionError: its ``retry`` allows one attempt only, or it is as with any step: see ``Saga``.
    """
    if retry.attempts < 2:
        raise DefinitionError(
            f"step {name or _title(action)!r} is retriable and has one attempt: there is no way back from it, so that "
            "it must be tried again; give it a retry= of more attempts, or move it before the pivot and give it an undo"
        )
    return _step(action, StepKind.RETRIABLE, None, _Bounds(timeout, retry, KEEP_TRYING, patience, when), name)


@dataclass(frozen=True, slots=True)
class _Bounds:
    timeout: float | None
    retry: Retry
    undo_retry: Retry
    patience: float
    when: When | None


def _step(
    action: Action | Awaited, kind: StepKind, undo: Action | Awaited | None, bounds: _Bounds, name: str | None
) -> Step:
    name = name or _title(action)
    if name == "<lambda>":
        raise DefinitionError(
            "a step that is written as lambda has no name: give it name=, such as name='reserve_seat'"
        )
    awaits = action if isinstance(action, Awaited) else None
    undo_awaits = undo if isinstance(undo, Awaited) else None
    _check_awaits(name, kind, awaits, undo_awaits)
    act: Action = nothing if isinstance(action, Awaited) else action
    back: Action | None = nothing if isinstance(undo, Awaited) else undo
    local = [
        _is_all_local(name, awaits) if awaits is not None else _is_local(name, act),
        _is_all_local(name, undo_awaits) if undo_awaits is not None else back is None or _is_local(name, back),
    ]
    if bounds.timeout is None and not all(local):
        raise DefinitionError(
            f"step {name!r} acts outside this service's transaction and has no time-out: give it timeout=, in seconds, "
            "or have it take a Transaction where its effect is in this database"
        )
    timeout = LOCAL_TIMEOUT if bounds.timeout is None else bounds.timeout
    for what, seconds in (("timeout", timeout), ("patience", bounds.patience)):
        if not 0 < seconds < float("inf"):
            raise DefinitionError(f"step {name!r}: {what}={seconds} is not a number of seconds above 0")
    _check_when(name, bounds.when)
    return Step(
        name,
        kind,
        act,
        back,
        timeout,
        bounds.retry,
        bounds.undo_retry,
        local[0],
        local[1],
        bounds.patience,
        bounds.when,
        awaits,
        undo_awaits,
    )


def _title(action: Action | Awaited) -> str:
    return action.title if isinstance(action, Awaited) else action.__name__


def _check_awaits(name: str, kind: StepKind, awaits: Awaited | None, undo_awaits: Awaited | None) -> None:
    if awaits is not None and awaits.on_timeout is REFUSE:
        if kind is StepKind.RETRIABLE:
            raise DefinitionError(
                f"step {name!r} is retriable and turns back when its time is over: there is no way back from it; give "
                "on_timeout= a function that goes on without the event, or ASK_AGAIN to send a command again"
            )
        if kind is StepKind.PIVOT and awaits.command is not None:
            raise DefinitionError(
                f"step {name!r} is the pivot and turns back when no reply has come in time, though the command may "
                "still be carried out: give it on_timeout=ASK_AGAIN, or a function that finds out"
            )
    if undo_awaits is None:
        return
    if undo_awaits.command is None:
        raise DefinitionError(
            f"step {name!r}: its compensation waits for an event that nobody was asked for; make it a request(...), or "
            "a function"
        )
    if undo_awaits.on_timeout is REFUSE:
        raise DefinitionError(
            f"step {name!r}: its compensation turns back when no reply has come in time, and it is the way back: give "
            "it on_timeout=ASK_AGAIN or a function"
        )


def _check_when(name: str, when: When | None) -> None:
    if when is None:
        return
    given: Any = when
    if not callable(given) or inspect.iscoroutinefunction(when):
        raise DefinitionError(
            f"step {name!r}: when={getattr(when, '__name__', when)} is a coroutine: a condition is a plain function "
            "of the state, def has_coupon(state) -> bool. What it must look up is a step of its own before, which "
            "leaves it in the state"
        )
    if required_of(when) != 1:
        raise DefinitionError(
            f"step {name!r}: its condition takes one parameter, the state, such as def has_coupon(state: Order)"
        )


def _is_all_local(name: str, awaits: Awaited) -> bool:
    """Of a step that waits: what it does when the waiting is over goes with the saga's progress.

    Raises:
        DefinitionError: one of its functions calls another service, or its command is no plain function.
    """
    for function in awaits.functions:
        if remote := _contracts(name, function):
            raise DefinitionError(
                f"step {name!r}: {function.__qualname__} calls {remote[0]} when what it waited for has come: have it "
                "note what came, and make the call a step of its own after it"
            )
    command: Any = awaits.command
    if command is not None and (not callable(command) or inspect.iscoroutinefunction(awaits.command)):
        raise DefinitionError(
            f"step {name!r}: the command is made by a plain function of the state, def {name}(state) -> ReserveSeat; "
            "the event that it returns is sent by the step"
        )
    return True


def _is_local(name: str, function: Action) -> bool:
    remote = _contracts(name, function)
    local = Transaction in _kinds(name, function)
    if local and remote:
        raise DefinitionError(
            f"step {name!r}: {function.__qualname__} takes a Transaction and calls {remote[0]}: the transaction would "
            "stay open for as long as the other service takes. Make them two steps, the call and what is written down"
        )
    return local


def _contracts(name: str, function: Action) -> list[str]:
    if not inspect.iscoroutinefunction(inspect.unwrap(function)):
        raise DefinitionError(f"step {name!r}: {function!r} must be written with async def")
    return [kind.__name__ for kind in _kinds(name, function) if issubclass(kind, Contract)]


def _kinds(name: str, function: Action) -> list[type]:
    return [kind for kind in map(bare, hints_of(name, function).values()) if inspect.isclass(kind)]
