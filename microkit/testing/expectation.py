"""What a scenario is expected to come to: its steps in their order, its end, its events, its calls, its rows."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import groupby
from typing import Any, Generic, TypeVar
from uuid import UUID

from pydantic import BaseModel

from microkit.contract import Operation
from microkit.db import Database, Transaction
from microkit.message import Event, Message
from microkit.saga.step import Failure
from microkit.saga.tables import Direction, Status
from microkit.testing.stub import Call

State = TypeVar("State", bound=BaseModel)

StepOf = str | Callable[..., Any]
"""A step: its name, or the function that it does."""


@dataclass(frozen=True, slots=True)
class Happened:
    """An attempt of a step that ended. ``status``: done, refused, failed, timed-out, lost."""

    step: str
    direction: Direction
    status: str
    attempt: int = field(default=1, compare=False)
    error: str | None = field(default=None, compare=False)

    def __str__(self) -> str:
        what = self.step if self.direction is Direction.ACTION else f"undo of {self.step}"
        why = f": {self.error}" if self.error else ""
        return f"{what} {self.status}{why}"


@dataclass(frozen=True, slots=True)
class Outcome(Generic[State]):
    """What came of a scenario.

    ``steps`` are the attempts in the order they ended, ``published`` the events in the order they were written,
    ``calls`` those of other services. ``step`` is under way, due or waited for; ``None`` at the end. ``took`` is how
    much (virtual) time passed from the start to the last transition.
    """

    saga_id: UUID
    status: Status
    step: str | None
    state: State
    steps: Sequence[Happened]
    failure: Failure | None
    error: str | None
    published: Sequence[Message]
    calls: Sequence[Call]
    took: timedelta
    database: Database = field(repr=False)

    def story(self) -> str:
        """What happened, for people."""
        lines = _counted(str(step) for step in self.steps)
        lines.append(f"  {self.status}" + (f" at {self.step}" if self.step else "") + f" after {self.took}")
        if self.failure is not None:
            lines.append(f"  because {self.failure.step} failed: {self.failure.reason}")
        if self.error:
            lines.append(f"  last error: {self.error}")
        lines += _counted(f"published {message.type}" for message in self.published)
        lines += _counted(f"called {call.operation.qualified_name}" for call in self.calls)
        return "\n".join(lines)


def _counted(lines: Iterable[str]) -> list[str]:
    """Equal lines that follow each other as one."""
    found = [(line, len(list(equal))) for line, equal in groupby(lines)]
    return [f"  {line}" + (f" ({times} times)" if times > 1 else "") for line, times in found]


class Expectation:
    """One thing that is expected. ``complaint`` says what is wrong, ``None`` where it is as expected."""

    def history(self) -> Iterator[Happened]:
        """The attempts that it expects, in their order; those of all expectations together are the whole history."""
        yield from ()

    async def complaint(self, outcome: Outcome[Any]) -> str | None:
        return None


def done(*steps: StepOf) -> Expectation:
    """These steps were done, one after the other."""
    return _Steps([Happened(_name(step), Direction.ACTION, "done") for step in steps])


def undone(*steps: StepOf) -> Expectation:
    """The compensations of these steps were done, one after the other."""
    return _Steps([Happened(_name(step), Direction.UNDO, "done") for step in steps])


def refused(step: StepOf, *, undo: bool = False) -> Expectation:
    """The step said that it cannot be done."""
    return _attempts(step, "refused", 1, undo)


def failed(step: StepOf, *, times: int = 1, undo: bool = False) -> Expectation:
    """So many attempts of the step failed, one after the other."""
    return _attempts(step, "failed", times, undo)


def timed_out(step: StepOf, *, times: int = 1, undo: bool = False) -> Expectation:
    """So many attempts of the step took too long, one after the other."""
    return _attempts(step, "timed-out", times, undo)


def completed() -> Expectation:
    """The saga went through to its end."""
    return _End(Status.COMPLETED)


def compensated(reason: str | None = None) -> Expectation:
    """The saga was compensated to its beginning, for this reason."""
    return _End(Status.COMPENSATED, reason)


def stuck(reason: str | None = None) -> Expectation:
    """The saga was set aside for an operator; its last error holds ``reason``."""
    return _End(Status.STUCK, reason)


def waiting(step: StepOf) -> Expectation:
    """The saga has not ended: it is at this step."""
    return _Waiting(_name(step))


def published(*events: Event | type[Event]) -> Expectation:
    """These events were published, and no others, in this order; a class stands for any event of it."""
    return _Published(events)


def called(operation: Operation[..., Any], *, times: int = 1, **arguments: Any) -> Expectation:
    """The operation was called so many times, each time with these ``arguments`` among others."""
    return _Called(operation, times, arguments)


def state(**fields: Any) -> Expectation:
    """The fields of the saga's state that are named have these values."""
    return _StateIs(fields)


def took(*, at_least: timedelta = timedelta(0), at_most: timedelta = timedelta.max) -> Expectation:
    """So much (virtual) time passed from the start to the last transition."""
    return _Took(at_least, at_most)


def holds(check: Callable[[Transaction], Awaitable[None]]) -> Expectation:
    """``check`` finds the service's own tables as they should be, with ``assert``."""
    return _Holds(check)


@dataclass(frozen=True)
class _Steps(Expectation):
    steps: Sequence[Happened]

    def history(self) -> Iterator[Happened]:
        yield from self.steps


@dataclass(frozen=True)
class _End(Expectation):
    status: Status
    reason: str | None = None

    async def complaint(self, outcome: Outcome[Any]) -> str | None:
        if outcome.status is not self.status:
            return f"it should be {self.status} and is {outcome.status}"
        why = outcome.error if self.status is Status.STUCK else outcome.failure.reason if outcome.failure else None
        if self.reason is not None and self.reason not in (why or ""):
            return f"the reason should be {self.reason!r} and is {why!r}"
        return None


@dataclass(frozen=True)
class _Waiting(Expectation):
    step: str

    async def complaint(self, outcome: Outcome[Any]) -> str | None:
        if outcome.step == self.step and outcome.status not in (Status.STUCK, *_ENDS):
            return None
        return f"it should wait at {self.step} and is {outcome.status}" + (
            f" at {outcome.step}" if outcome.step else ""
        )


_ENDS = (Status.COMPLETED, Status.COMPENSATED)


@dataclass(frozen=True)
class _Published(Expectation):
    events: Sequence[Event | type[Event]]

    async def complaint(self, outcome: Outcome[Any]) -> str | None:
        found = [message.type for message in outcome.published]
        wanted = [event.event_type for event in self.events]
        if found != wanted:
            return f"it should publish {', '.join(wanted) or 'nothing'} and published {', '.join(found) or 'nothing'}"
        for event, message in zip(self.events, outcome.published, strict=True):
            if isinstance(event, Event) and (other := type(event).from_message(message)) != event:
                return f"it should publish {event!r} and published {other!r}"
        return None


@dataclass(frozen=True)
class _Called(Expectation):
    operation: Operation[..., Any]
    times: int
    arguments: dict[str, Any]

    async def complaint(self, outcome: Outcome[Any]) -> str | None:
        name = self.operation.qualified_name
        calls = [call for call in outcome.calls if call.operation is self.operation]
        if len(calls) != self.times:
            return f"{name} should be called {self.times} times and was called {len(calls)} times"
        for call in calls:
            for argument, value in self.arguments.items():
                if call.arguments.get(argument) != value:
                    return f"{name} should be called with {argument}={value!r}, not {call.arguments.get(argument)!r}"
        return None


@dataclass(frozen=True)
class _StateIs(Expectation):
    fields: dict[str, Any]

    async def complaint(self, outcome: Outcome[Any]) -> str | None:
        found = {name: getattr(outcome.state, name, "no such field") for name in self.fields}
        wrong = [
            f"{name}={found[name]!r}, not {value!r}" for name, value in self.fields.items() if found[name] != value
        ]
        return f"the state has {', '.join(wrong)}" if wrong else None


@dataclass(frozen=True)
class _Took(Expectation):
    at_least: timedelta
    at_most: timedelta

    async def complaint(self, outcome: Outcome[Any]) -> str | None:
        if self.at_least <= outcome.took <= self.at_most:
            return None
        return f"it took {outcome.took}, which is not between {self.at_least} and {self.at_most}"


@dataclass(frozen=True)
class _Holds(Expectation):
    check: Callable[[Transaction], Awaitable[None]]

    async def complaint(self, outcome: Outcome[Any]) -> str | None:
        try:
            async with outcome.database.transaction(read_only=True) as tx:
                await self.check(tx)
        except AssertionError as error:
            return f"{getattr(self.check, '__qualname__', self.check)} does not hold: {error}"
        return None


def _attempts(step: StepOf, status: str, times: int, undo: bool) -> Expectation:
    direction = Direction.UNDO if undo else Direction.ACTION
    return _Steps([Happened(_name(step), direction, status)] * times)


def _name(step: StepOf) -> str:
    return step if isinstance(step, str) else str(getattr(step, "__name__", step))


async def complaints(expectations: Sequence[Expectation], outcome: Outcome[Any]) -> list[str]:
    """Everything that is not as expected."""
    found = []
    wanted = [step for expectation in expectations for step in expectation.history()]
    if wanted and wanted != list(outcome.steps):
        told = "\n".join(f"    {number}. {step}" for number, step in enumerate(wanted, 1))
        found.append(f"its steps should be\n{told}")
    for expectation in expectations:
        complaint = await expectation.complaint(outcome)
        if complaint is not None:
            found.append(complaint)
    return found
