"""The steps of a saga: what each does, how it is undone, how often it is tried, how long it may take."""

from __future__ import annotations

import inspect
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Any, Final, get_type_hints
from uuid import UUID

from pydantic import BaseModel

from microkit.errors import DefinitionError, MicrokitError
from microkit.saga.awaiting import Awaited

Action = Callable[..., Awaitable[BaseModel | Mapping[str, Any] | None]]
"""An ``async def`` whose parameters are bound by name (``state``) and type (the state's model, ``Transaction``,
``StepContext``, contracts, resources). It returns the new state, a dictionary of the changed fields, or nothing."""


When = Callable[[Any], bool]
"""A plain function of the state that says whether a step is needed. It is asked once, when the step's turn comes."""


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

    ``awaits`` and ``undo_awaits`` say what a half that waits waits for; ``when`` whether the step is needed at all.
    ``branches`` are the steps of a parallel group, which is a step itself.
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
    when: When | None = None
    awaits: Awaited | None = None
    undo_awaits: Awaited | None = None
    branches: tuple[Step, ...] = ()

    @property
    def functions(self) -> tuple[Action, ...]:
        """All that may be called to do it."""
        return (self.action,) if self.awaits is None else self.awaits.functions

    @property
    def undo_functions(self) -> tuple[Action, ...]:
        """All that may be called to undo it."""
        if self.undo_awaits is not None:
            return self.undo_awaits.functions
        return () if self.undo is None else (self.undo,)


async def nothing() -> None:
    """What a step does that only waits, or whose branches do it."""


def hints_of(name: str, function: Action) -> dict[str, Any]:
    """The types of the parameters and the result of a function of the step ``name``.

    Raises:
        DefinitionError: a type that it names is not there.
    """
    try:
        return get_type_hints(function, include_extras=True)
    except NameError as error:
        raise DefinitionError(f"step {name!r}: a type that it names is not known yet: {error}") from None


def required_of(function: Callable[..., Any]) -> int:
    """How many parameters must be given to it."""
    return sum(
        each.default is each.empty and each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
        for each in inspect.signature(function).parameters.values()
    )
