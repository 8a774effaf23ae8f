"""Other services, as a test says that they answer: :func:`answers`, :func:`refuses`, :func:`times_out` and the like.

Only what is far away is faked. A :class:`Stub` is the ``Caller`` of a contract: what it answers has been through the
contract's types, what it refuses must be declared there, and a time-out takes the time that the caller allows.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

from pydantic import TypeAdapter

from microkit.context import current, remaining
from microkit.contract import Operation
from microkit.errors import BadGateway, DeadlineExceeded, DefinitionError, MicrokitError, Problem, Unavailable

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

_LONGEST: Final = 10.0
"""Seconds that a call waits for its answer when neither the operation nor its caller says so, as settings have it."""


class Answer(Generic[R_co]):
    """What one call of an operation comes to. Made by the functions below."""

    def __init__(self, what: str, give: Callable[[Operation[..., Any], Mapping[str, Any]], Awaitable[Any]]) -> None:
        self.what = what
        self.give = give
        self.problem: Problem | None = None

    def __repr__(self) -> str:
        return self.what


def answers(result: R, *, after: float = 0.0) -> Answer[R]:
    """The call succeeds with ``result``, ``after`` so many seconds."""

    async def give(operation: Operation[..., Any], _arguments: Mapping[str, Any]) -> Any:
        await _wait(operation, after)
        return result

    return Answer(f"answers({result!r:.60})", give)


def does(function: Callable[..., Awaitable[R] | R]) -> Answer[R]:
    """The call is carried out by ``function``, which takes the operation's arguments: a fake that remembers."""

    async def give(_operation: Operation[..., Any], arguments: Mapping[str, Any]) -> Any:
        result = function(**arguments)
        return await result if inspect.isawaitable(result) else result

    return Answer(f"does({getattr(function, '__qualname__', function)!s})", give)


def refuses(problem: Problem) -> Answer[Any]:
    """The call is answered with a problem that the operation declares."""

    async def give(_operation: Operation[..., Any], _arguments: Mapping[str, Any]) -> Any:
        raise problem

    made: Answer[Any] = Answer(f"refuses({problem!r})", give)
    made.problem = problem
    return made


def times_out() -> Answer[Any]:
    """No answer comes in the time that the caller allows. Whether the call was carried out, nobody knows."""

    async def give(operation: Operation[..., Any], _arguments: Mapping[str, Any]) -> Any:
        await _wait(operation, float("inf"))

    return Answer("times_out()", give)


def unreachable() -> Answer[Any]:
    """The service cannot be reached: the call was not sent."""

    async def give(operation: Operation[..., Any], _arguments: Mapping[str, Any]) -> Any:
        raise Unavailable(f"{operation.contract.contract_service} cannot be reached")

    return Answer("unreachable()", give)


def breaks_off() -> Answer[Any]:
    """The answer is lost on its way: the call may have been carried out."""

    async def give(operation: Operation[..., Any], _arguments: Mapping[str, Any]) -> Any:
        raise BadGateway(f"{operation.contract.contract_service} broke off its answer")

    return Answer("breaks_off()", give)


@dataclass(frozen=True, slots=True)
class Call:
    """A call that was made, with the idempotency key that went along."""

    operation: Operation[..., Any]
    arguments: Mapping[str, Any]
    idempotency_key: str | None


class NotForeseenError(MicrokitError):
    """A call was made that the test does not say an answer for."""

    def __init__(self, operation: Operation[..., Any]) -> None:
        name = operation.qualified_name
        super().__init__(
            f"{name} is called, and nothing says what it answers: .given({name}, answers(...)), refuses(...), "
            "times_out(), unreachable() or breaks_off()"
        )


@dataclass(slots=True)
class Stub:
    """A ``Caller`` that answers each operation as it was told, in turn; the last answer stays. ``calls`` holds all that
    were made; ``missing`` is of the first that nobody had foreseen."""

    calls: list[Call] = field(default_factory=list)
    missing: NotForeseenError | None = None
    _scripts: dict[Any, list[Answer[Any]]] = field(default_factory=dict)

    def script(self, operation: Operation[..., Any], script: Sequence[Answer[Any]]) -> None:
        """Says what the operation answers.

        Raises:
            DefinitionError: nothing, or a problem that the operation does not declare.
        """
        check_answers(operation, script)
        self._scripts[operation] = list(script)

    async def call(self, operation: Operation[..., R], arguments: Mapping[str, Any]) -> R:
        self.calls.append(Call(operation, dict(arguments), current().idempotency_key))
        script = self._scripts.get(operation)
        if script is None:
            self.missing = self.missing or NotForeseenError(operation)
            raise self.missing
        answer = script.pop(0) if len(script) > 1 else script[0]
        result = await answer.give(operation, arguments)
        return as_sent(operation, result)


def check_answers(operation: Operation[..., Any], script: Sequence[Answer[Any]]) -> None:
    """See :meth:`Stub.script`."""
    if not isinstance(operation, Operation):
        raise DefinitionError(f"given() takes an operation of a contract, such as Billing.reserve, not {operation!r}")
    if not script:
        raise DefinitionError(f"{operation.qualified_name}: given(..., answers(...)) says what it answers")
    for answer in script:
        if not isinstance(answer, Answer):
            raise DefinitionError(f"{operation.qualified_name}: write answers({answer!r:.60})")
        if answer.problem is not None and not isinstance(answer.problem, operation.raises or ()):
            name = type(answer.problem).__name__
            raise DefinitionError(
                f"{operation.qualified_name} does not declare {name}, so that its callers cannot get it: "
                f"add it to the operation's raises=, or refuse with one of "
                f"{', '.join(problem.__name__ for problem in operation.raises) or 'none'}"
            )


def as_sent(operation: Operation[..., R], result: Any) -> R:
    """A result as it arrives: written as JSON and read again.

    Raises:
        ValidationError: it does not fit the operation's type.
    """
    adapter: TypeAdapter[R] = TypeAdapter(operation.result)
    return adapter.validate_json(adapter.dump_json(adapter.validate_python(result)))


async def _wait(operation: Operation[..., Any], seconds: float) -> None:
    """Waits as long as the other side takes, or as its caller waits.

    Raises:
        DeadlineExceeded: the caller waits no longer.
    """
    allowed = _LONGEST if operation.timeout is None else operation.timeout
    left = remaining()
    allowed = allowed if left is None else min(allowed, left)
    await asyncio.sleep(min(seconds, allowed))
    if seconds >= allowed:
        name = operation.contract.contract_service
        raise DeadlineExceeded(f"{name} did not answer {operation.qualified_name} within {allowed:.3g} s")
