"""What a saga is: steps in the order they happen, each with its compensating transaction beside it.

::

    pay_bill = Saga(
        "pay-bill",
        PayBill,
        [
            compensatable(reserve_bill, undo=release_bill, timeout=5),
            pivot(submit_payment, timeout=30),
            retriable(settle_bill, timeout=5),
        ],
    )

    await pay_bill.start(tx, PayBill(payment_id=…, bill_id=…))     # in the transaction that decides it

The pattern and its words are Garcia-Molina and Salem's (*Sagas*, 1987) and Richardson's (*Microservices Patterns*,
4.3): compensatable steps can be undone, the pivot is the point of no return, retriable steps succeed in the end.
"""

from __future__ import annotations

import inspect
import random
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, StrEnum
from functools import cached_property
from hashlib import sha256
from itertools import pairwise
from typing import Any, Final, Generic, TypeVar, get_type_hints
from uuid import UUID, uuid4

import orjson
from pydantic import BaseModel, ValidationError

from microkit.contract import Contract
from microkit.db import Transaction
from microkit.errors import DefinitionError, MicrokitError
from microkit.injection import bare
from microkit.saga.enrol import enrol

State = TypeVar("State", bound=BaseModel)

Action = Callable[..., Awaitable[BaseModel | Mapping[str, Any] | None]]
"""An ``async def`` whose parameters are bound by name (``state``) and type (the state's model, ``Transaction``,
``StepContext``, contracts, resources). It returns the new state, a dictionary of the changed fields, or nothing."""

_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*\Z")


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


def compensatable(
    action: Action,
    *,
    undo: Action | NoEffect,
    timeout: float | None = None,
    retry: Retry = GIVE_UP_SOON,
    undo_retry: Retry = KEEP_TRYING,
    patience: float = PATIENCE,
    name: str | None = None,
) -> Step:
    """A step that can be undone.

    ``undo`` must do no harm where the action never happened: it also runs after attempts whose outcome nobody knows.
    """
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
    """A step that succeeds in the end. Every failure is retried, a refusal too, for there is no way back."""
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
    kinds = [kind for kind in map(bare, _hints(name, function).values()) if inspect.isclass(kind)]
    local = Transaction in kinds
    remote = [kind.__name__ for kind in kinds if issubclass(kind, Contract)]
    if local and remote:
        raise DefinitionError(
            f"step {name!r}: {function.__qualname__} takes a Transaction and calls {remote[0]}: the transaction would "
            "stay open for as long as the other service takes. Make them two steps, the call and what is written down"
        )
    return local


def _hints(name: str, function: Action) -> dict[str, Any]:
    try:
        return get_type_hints(function, include_extras=True)
    except NameError as error:
        raise DefinitionError(f"step {name!r}: a type that it names is not known yet: {error}") from None


_ORDER = {StepKind.COMPENSATABLE: 0, StepKind.PIVOT: 1, StepKind.RETRIABLE: 2}


class Saga(Generic[State]):
    """A definition. ``name`` and ``version`` are stored with each running saga, ``state`` is what travels from step to
    step and survives with it.

    Steps may be added, taken away or reordered only with a new ``version``; keep the old definition beside the new one
    until its last saga has ended. A running saga whose definition is gone is parked, not guessed.

    Raises:
        DefinitionError: the steps cannot keep the promise that a saga ends; the message says what to change.
    """

    def __init__(self, name: str, state: type[State], steps: Sequence[Step], *, version: int = 1) -> None:
        self.name = name
        self.state = state
        self.steps = tuple(steps)
        self.version = version
        self.positions: Mapping[str, int] = {step.name: position for position, step in enumerate(self.steps)}
        _check(self)

    def __repr__(self) -> str:
        return f"<Saga {self.name} v{self.version}: {' → '.join(step.name for step in self.steps)}>"

    @cached_property
    def fingerprint(self) -> str:
        """Equal for definitions under which the same running saga can go on."""
        shape = [f"{step.name}:{step.kind}:{'undo' if step.undo else '-'}" for step in self.steps]
        return sha256("\n".join([self.name, str(self.version), *shape]).encode()).hexdigest()[:16]

    def dump(self, state: State) -> Any:
        """``state`` as JSON.

        Raises:
            ValueError: it would not come back from the database as it is. Secrets, for example, come back masked: keep
                a reference to them.
        """
        if not isinstance(state, self.state):
            raise TypeError(f"{self.name}: the state is a {self.state.__name__}, not {state!r:.100}")
        try:
            frozen = orjson.loads(state.model_dump_json(warnings="error"))
            again = self.load(frozen)
        except ValidationError as error:
            raise ValueError(f"{self.name}: the state does not survive being stored as JSON: {told(error)}") from None
        except ValueError:  # its text shows the value, which may be private
            raise ValueError(f"{self.name}: a field of {self.state.__name__} holds a value of another type") from None
        if again != state:
            changed = [name for name in self.state.model_fields if getattr(again, name) != getattr(state, name)]
            raise ValueError(f"{self.name}: the state does not survive being stored as JSON: {', '.join(changed)}")
        return frozen

    def load(self, frozen: Any) -> State:
        """The state that ``dump`` stored.

        Raises:
            ValidationError: it does not fit the model (any more).
        """
        return self.state.model_validate_json(orjson.dumps(frozen))

    async def start(self, tx: Transaction, state: State, *, saga_id: UUID | None = None) -> UUID:
        """Starts a saga in the caller's transaction: it runs if that commits. Returns its id.

        Starting a ``saga_id`` again does nothing, so that a repeated event starts one saga.

        Raises:
            ValueError: the state would not survive being stored.
            Conflict: another saga has this id.
        """
        saga_id = saga_id or uuid4()
        columns = {
            "name": self.name,
            "version": self.version,
            "fingerprint": self.fingerprint,
            "step": self.steps[0].name,
            "state": self.dump(state),
        }
        await enrol(tx, saga_id, columns)
        return saga_id


def told(error: ValidationError) -> str:
    """Where and what, without the value: that may be private, and this goes into logs."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    return f"{'/'.join(map(str, first['loc']))}: {first['msg']}"


def _check(saga: Saga[Any]) -> None:
    where = f"saga {saga.name!r}"
    if not _NAME.match(saga.name):
        raise DefinitionError(f"{where}: the name is lower-case words joined by dashes, such as 'pay-bill'")
    if saga.version < 1:
        raise DefinitionError(f"{where}: version={saga.version}; versions count from 1")
    if not saga.steps:
        raise DefinitionError(f"{where} has no steps")
    if len(saga.positions) < len(saga.steps):
        twice = sorted({step.name for step in saga.steps if [s.name for s in saga.steps].count(step.name) > 1})
        raise DefinitionError(f"{where} has two steps of the name {twice[0]!r}: tell them apart with name=")
    _check_order(where, saga.steps)
    for step in saga.steps:
        for function in (step.action, step.undo):
            if function is not None:
                _check_state(f"{where}, step {step.name!r}", _hints(step.name, function), saga.state)


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


def _check_state(where: str, hints: Mapping[str, Any], state: type[BaseModel]) -> None:
    result = hints.get("return")
    if inspect.isclass(result) and issubclass(result, BaseModel) and not issubclass(result, state):
        raise DefinitionError(
            f"{where} returns {result.__name__}; a step returns the saga's state ({state.__name__}), a dictionary "
            "of the fields that changed, or nothing"
        )
    taken = hints.get("state")
    if inspect.isclass(taken) and not issubclass(state, taken):
        raise DefinitionError(f"{where} takes state: {taken.__name__}; the saga's state is {state.__name__}")
