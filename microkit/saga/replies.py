"""Events that sagas wait for, as they come from the bus.

Each step that waits is a durable consumer group of its own, ``<service>.saga.<definition>.<step>``: a version that is
deployed beside an older one, and waits for something new, never shares a group with instances that do not know it. What
becomes of an event is written with its mark in the inbox: it is delivered once, kept, or a no-op that is counted.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from microkit.db import Transaction
from microkit.message import IN_REPLY_TO, Event, Message
from microkit.saga.awaiting import Awaited
from microkit.saga.definition import Saga
from microkit.saga.tables import Direction
from microkit.saga.waits import Address, Fate, deliver, place_of, told_by
from microkit.telemetry import Telemetry

_LABELS: Final = ("saga", "saga_step", "outcome")


@dataclass(frozen=True, slots=True)
class Expected:
    """One place of a definition where events are awaited. ``awaits`` are those of all versions that are offered."""

    saga: str
    place: str
    awaits: tuple[Awaited, ...]

    def group(self, service: str) -> str:
        return f"{service}.saga.{self.saga}.{self.place.replace(':', '.')}"

    @property
    def events(self) -> tuple[type[Event], ...]:
        return tuple(dict.fromkeys(event for awaits in self.awaits for event in awaits.events))

    def of(self, event: type[Event]) -> Awaited:
        return next(awaits for awaits in self.awaits if event in awaits.events)


def expected_by(sagas: Sequence[Saga[Any]]) -> list[Expected]:
    """What the sagas of a service wait for, those of all versions of a definition together."""
    found: dict[tuple[str, str], list[Awaited]] = {}
    for saga in sagas:
        for place, awaits in _awaited(saga):
            found.setdefault((saga.name, place), []).append(awaits)
    return [Expected(saga, place, tuple(awaits)) for (saga, place), awaits in found.items()]


def _awaited(saga: Saga[Any]) -> Iterator[tuple[str, Awaited]]:
    for step in saga.places.values():
        if step.awaits is not None:
            yield place_of(step.name, Direction.ACTION), step.awaits
        if step.undo_awaits is not None:
            yield place_of(step.name, Direction.UNDO), step.undo_awaits


class Replies:
    """Hands events to the sagas of one service."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._log = telemetry.logger.getChild("saga")
        self._count = telemetry.metrics.counter(
            "microkit_saga_replies_total", "Events for sagas that wait, by what became of them.", _LABELS
        )

    async def handle(self, expected: Expected, event: Event, message: Message, tx: Transaction) -> Fate | None:
        """What becomes of an event, written in ``tx``; ``None`` where it is about no saga."""
        awaits = expected.of(type(event))
        value = _value_of(expected, awaits, event, message)
        if value is None:
            return None
        keep = awaits.keep if awaits.by is not None else None
        if keep is not None and _age(message) > keep:
            keep = None  # the group is new, and the event older than what is kept
        fate = await deliver(tx, Address(expected.saga, expected.place, value), message, keep=keep)
        if fate is Fate.UNKNOWN and awaits.by is not None:
            fate = Fate.EXPIRED
        tx.after_commit(lambda: self._tell(expected, message, fate))
        return fate

    def _tell(self, expected: Expected, message: Message, fate: Fate) -> None:
        self._count(expected.saga, expected.place, fate).inc()
        if fate in (Fate.LATE, Fate.TWICE, Fate.UNKNOWN):
            extra = {"saga": expected.saga, "saga_step": expected.place, "message_id": message.id, "outcome": fate}
            self._log.info("%s changed no saga: %s", message.type, _WHY[fate], extra=extra)


def handing_on(expected: Expected) -> Callable[..., Awaitable[None]]:
    """The handler of the group of ``expected``."""

    async def hand_on(event: Event, message: Message, tx: Transaction, replies: Replies) -> None:
        await replies.handle(expected, event, message, tx)

    return hand_on


_WHY: Final = {
    Fate.LATE: "the one that waited for it waits no more",
    Fate.TWICE: "one had come before",
    Fate.UNKNOWN: "there is none that it could be for",
}


def _value_of(expected: Expected, awaits: Awaited, event: Event, message: Message) -> str | None:
    if awaits.by is not None:
        try:
            return told_by(getattr(event, awaits.by[0]))
        except ValueError:
            return None  # a field that is empty is about no saga
    saga_id, _, place = message.headers.get(IN_REPLY_TO, "").partition(":")
    try:
        return str(UUID(saga_id)) if place == expected.place else None
    except ValueError:
        return None


def _age(message: Message) -> float:
    """Seconds since it was published, by its publisher's clock."""
    try:
        published = datetime.fromisoformat(message.headers.get("ce_time", ""))
    except ValueError:
        return 0.0
    if published.tzinfo is None:
        published = published.replace(tzinfo=UTC)
    return (datetime.now(UTC) - published).total_seconds()
