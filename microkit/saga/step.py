"""The steps of a saga: what each does, how it is undone, how often it is tried, how long it may take."""

from __future__ import annotations

import inspect
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Any, Final, get_type_hints, overload
from uuid import UUID

from pydantic import BaseModel

from microkit.contract import Contract
from microkit.db import Transaction
from microkit.errors import DefinitionError, MicrokitError
from microkit.injection import bare

Action = Callable[..., Awaitable[BaseModel | Mapping[str, Any] | None]]
"""An ``async def`` whose parameters are bound by name (``state``) and type (the state's model, ``Transaction``,
``StepContext``, contracts, resources). It returns the new state, a dictionary of the changed fields, or nothing."""


class StepRefused(MicrokitError):
    """Raised by a step that cannot be done, and was not: the saga is compensated and no attempt follows.

    A ``Problem`` with a 4xx status says the same. ``reason`` is for the person who started the saga; ``type`` is a
    stable name for programs, such as a problem's ``type``.
    """

    def __init__(self, reason: str, *, type: str | None = None) -> None:  # noqa: A002  the problem document's word
        super().__init__(reason)
        self.reason = reason
        self.type = type


class StepNotYet(MicrokitError):
    """Raised by a step whose turn has not come, and that did nothing: it is called again ``after`` seconds at the
    earliest (from 0.01 to 3,600) and half as many more at most, so that those who wait do not all come back at once.

    It is no failure: there is no warning, no attempt is used up, nothing is added to the history; ``reason`` stands in
    the saga until then. A step that has said so for longer than its ``patience`` has failed, and its attempts begin to
    count.

    Raises:
        ValueError: ``after`` is no such number of seconds.
    """

    def __init__(self, reason: str = "it is not time yet", *, after: float) -> None:
        if not 0.01 <= after <= 3600:
            raise ValueError(f"StepNotYet(after={after}): from 0.01 to 3,600 seconds")
        super().__init__(reason)
        self.reason = reason
        self.after = after


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a saga is compensated: the ``step`` that failed, the ``reason`` for people, the ``type`` for programs."""

    step: str
    reason: str
    type: str | None = None


@dataclass(frozen=True, slots=True)
class StepContext:
    """What a step may ask to know about itself.

    ``attempt`` counts from 1; above 1 an earlier attempt failed, or was cut off with an unknown outcome. ``failure`` is
    set in compensations. ``idempotency_key`` is the same in every attempt; typed clients send it by themselves.
    """

    saga_id: UUID
    step: str
    attempt: int
    failure: Failure | None
    idempotency_key: str


class StepKind(StrEnum):
    COMPENSATABLE = "compensatable"
    PIVOT = "pivot"
    RETRIABLE = "retriable"


class NoEffect(Enum):
    """The type of ``NO_EFFECT``."""

    NO_EFFECT = "no-effect"


NO_EFFECT: Final = NoEffect.NO_EFFECT
"""``undo=NO_EFFECT``: the step only reads, there is nothing to compensate."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Exponential backoff with full jitter: before attempt ``n + 1`` a random time up to ``initial · 2^(n-1)`` seconds,
    ``maximum`` at most. After ``attempts`` the step has failed."""

    attempts: int
    initial: float = 0.2
    maximum: float = 60.0

    def __post_init__(self) -> None:
        if self.attempts < 1 or not 0 <= self.initial <= self.maximum < float("inf"):
            raise DefinitionError(f"{self}: at least one attempt, and 0 ≤ initial ≤ maximum seconds")

    def delay(self, attempt: int) -> float:
        """Seconds to wait after attempt number ``attempt`` has failed."""
        return random.uniform(0, min(self.maximum, self.initial * 2.0 ** min(attempt - 1, 60)))  # noqa: S311  jitter


GIVE_UP_SOON: Final = Retry(attempts=6)
"""Of a step that can be compensated: about ten seconds, then the saga turns back."""

KEEP_TRYING: Final = Retry(attempts=20)
"""Of a step with no way back: about five minutes, then the saga is parked as stuck."""


PATIENCE: Final = 86_400.0
"""Seconds in which a step may say ``StepNotYet``, from the first time on."""

LOCAL_TIMEOUT: Final = 30.0
"""Seconds that a step with a transaction of its own has when it names no time-out."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step. ``timeout`` bounds each attempt of it and of its ``undo``, in seconds; ``patience`` is how many seconds
    either may go on saying ``StepNotYet``.

    ``action_local`` and ``undo_local`` say whether that half takes a ``Transaction``: its effect is then committed
    together with the saga's progress. The other kind acts elsewhere, and its outcome is recorded after it.
    """

    name: str
    kind: StepKind
    action: Action
    undo: Action | None
    timeout: float
    retry: Retry
    undo_retry: Retry
    action_local: bool
    undo_local: bool
    patience: float


@overload
def compensatable(
    action: Action,
    *,
    undo: Action,
    timeout: float | None = None,
    retry: Retry = GIVE_UP_SOON,
    undo_retry: Retry = KEEP_TRYING,
    patience: float = PATIENCE,
    name: str | None = None,
) -> Step: ...
@overload
def compensatable(
    action: Action,
    *,
    undo: NoEffect,
    timeout: float | None = None,
    retry: Retry = GIVE_UP_SOON,
    undo_retry: Retry = KEEP_TRYING,
    patience: float = PATIENCE,
    name: str | None = None,
) -> Step: ...
def compensatable(
    action: Action,
    *,
    undo: Action | NoEffect | None = None,
    timeout: float | None = None,
    retry: Retry = GIVE_UP_SOON,
    undo_retry: Retry = KEEP_TRYING,
    patience: float = PATIENCE,
    name: str | None = None,
) -> Step:
    """A step that can be undone.

    ``undo`` must do no harm where the action never happened: it also runs after attempts whose outcome nobody knows.
    A step that only reads has ``undo=NO_EFFECT``.

    Raises:
        DefinitionError: it has no ``undo``, or it is as with any step: see ``Saga``.
    """
    if undo is None:
        raise DefinitionError(
            f"step {name or action.__name__!r} has no compensation: give it undo=, the function that takes its effect "
            "back, or undo=NO_EFFECT where it only reads"
        )
    compensation = None if isinstance(undo, NoEffect) else undo
    return _step(action, StepKind.COMPENSATABLE, compensation, _Bounds(timeout, retry, undo_retry, patience), name)


def pivot(
    action: Action,
    *,
    timeout: float | None = None,
    retry: Retry = KEEP_TRYING,
    patience: float = PATIENCE,
    name: str | None = None,
) -> Step:
    """The point of no return: once it is done the saga goes on to its end, once it refuses the saga is compensated.

    A pivot in another system whose attempts all end unknown is parked as stuck: nobody can say which way is right.
    """
    return _step(action, StepKind.PIVOT, None, _Bounds(timeout, retry, KEEP_TRYING, patience), name)


def retriable(
    action: Action,
    *,
    timeout: float | None = None,
    retry: Retry = KEEP_TRYING,
    patience: float = PATIENCE,
    name: str | None = None,
) -> Step:
    """A step that succeeds in the end. Every failure is retried, a refusal too, for there is no way back.

    Raises:
        DefinitionError: its ``retry`` allows one attempt only, or it is as with any step: see ``Saga``.
    """
    if retry.attempts < 2:
        raise DefinitionError(
            f"step {name or action.__name__!r} is retriable and has one attempt: there is no way back from it, so that "
            "it must be tried again; give it a retry= of more attempts, or move it before the pivot and give it an undo"
        )
    return _step(action, StepKind.RETRIABLE, None, _Bounds(timeout, retry, KEEP_TRYING, patience), name)


@dataclass(frozen=True, slots=True)
class _Bounds:
    timeout: float | None
    retry: Retry
    undo_retry: Retry
    patience: float


def _step(action: Action, kind: StepKind, undo: Action | None, bounds: _Bounds, name: str | None) -> Step:
    name = name or action.__name__
    local = [function is None or _is_local(name, function) for function in (action, undo)]
    if bounds.timeout is None and not all(local):
        raise DefinitionError(
            f"step {name!r} acts outside this service's transaction and has no time-out: give it timeout=, in seconds, "
            "or have it take a Transaction where its effect is in this database"
        )
    timeout = LOCAL_TIMEOUT if bounds.timeout is None else bounds.timeout
    for what, seconds in (("timeout", timeout), ("patience", bounds.patience)):
        if not 0 < seconds < float("inf"):
            raise DefinitionError(f"step {name!r}: {what}={seconds} is not a number of seconds above 0")
    return Step(name, kind, action, undo, timeout, bounds.retry, bounds.undo_retry, local[0], local[1], bounds.patience)


def _is_local(name: str, function: Action) -> bool:
    if not inspect.iscoroutinefunction(inspect.unwrap(function)):
        raise DefinitionError(f"step {name!r}: {function!r} must be written with async def")
    kinds = [kind for kind in map(bare, hints_of(name, function).values()) if inspect.isclass(kind)]
    local = Transaction in kinds
    remote = [kind.__name__ for kind in kinds if issubclass(kind, Contract)]
    if local and remote:
        raise DefinitionError(
            f"step {name!r}: {function.__qualname__} takes a Transaction and calls {remote[0]}: the transaction would "
            "stay open for as long as the other service takes. Make them two steps, the call and what is written down"
        )
    return local


def hints_of(name: str, function: Action) -> dict[str, Any]:
    """The types of the parameters and the result of a function of the step ``name``.

    Raises:
        DefinitionError: a type that it names is not there.
    """
    try:
        return get_type_hints(function, include_extras=True)
    except NameError as error:
        raise DefinitionError(f"step {name!r}: a type that it names is not known yet: {error}") from None
