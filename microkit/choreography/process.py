"""What a process is: the events that tell of it, and which of their fields says of which one.

::

    booking = Process(
        "booking",
        by="booking_id",
        events=[BookingRequested, SeatHeld, PaymentTaken, TicketIssued],
        ends=[TicketIssued, BookingExpired],
        stuck_after=900,
    )
    service.process(booking)

Nothing is done by it and nothing depends on it: the services react to each other's events as they would without. It is
what the literature calls a choreographed saga, seen from outside (Richardson, *Microservices Patterns*, 4.2.1; Hohpe
and Woolf, *Enterprise Integration Patterns*: Correlation Identifier, Message History).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Final

from microkit.errors import DefinitionError
from microkit.message import Event

LONGEST_NAME: Final = 100
_NAME: Final = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")


class Process:
    """A definition.

    ``by`` is the field that all events of one process have in common, or that field for each event. ``events`` are
    those that tell of it, in the order in which they are expected; they may come in another. Those in ``ends`` end it;
    some of them may be no part of the expected order, as a cancellation is not. ``stuck_after`` is how many seconds may
    pass without an event before a process that has not ended counts as stuck; without it none does.

    Raises:
        DefinitionError: the events do not have the field, or nothing ends the process; the message says what to change.
    """

    def __init__(
        self,
        name: str,
        *,
        by: str | Mapping[type[Event], str],
        events: Sequence[type[Event]],
        ends: Sequence[type[Event]],
        stuck_after: float | None = None,
    ) -> None:
        _check(name, events, ends, stuck_after)
        self.name = name
        self.expected = tuple(events)
        self.ends = tuple(ends)
        self.stuck_after = stuck_after
        self.events: tuple[type[Event], ...] = tuple(dict.fromkeys([*events, *ends]))
        self.fields: Mapping[type[Event], str] = {event: _field(name, event, by) for event in self.events}

    def __repr__(self) -> str:
        return f"<Process {self.name}: {' → '.join(event.__name__ for event in self.expected)}>"

    def id_of(self, event: Event) -> str | None:
        """Which process the event tells of; ``None`` if of none, because its field is empty."""
        value = getattr(event, self.fields[type(event)])
        return None if value is None else str(value)

    def missing(self, seen: Sequence[str]) -> list[str]:
        """The types of expected events that have not come though later ones have: lost, or still on their way."""
        reached = [position for position, event in enumerate(self.expected) if event.event_type in seen]
        before = self.expected[: max(reached, default=0)]
        return [event.event_type for event in before if event.event_type not in seen]

    def awaited(self, seen: Sequence[str]) -> list[str]:
        """The types of the events that may come next: the next one expected, and the ends that are none of those."""
        reached = [position for position, event in enumerate(self.expected) if event.event_type in seen]
        following = self.expected[max(reached, default=-1) + 1 :][:1]
        others = [event for event in self.ends if event not in self.expected]
        return [event.event_type for event in (*following, *others)]


def _check(name: object, events: object, ends: object, stuck_after: float | None) -> None:
    if not isinstance(name, str) or len(name) > LONGEST_NAME or not _NAME.fullmatch(name):
        raise DefinitionError(
            f"{name!r:.120} cannot be a process's name: write lower-case words joined by dashes, such as seat-booking"
        )
    if not isinstance(events, Sequence) or not events:
        raise DefinitionError(
            f"{name} is told of by no event: list them in the order they are expected, such as "
            "events=[BookingRequested, SeatHeld, TicketIssued]"
        )
    if not isinstance(ends, Sequence) or not ends:
        raise DefinitionError(
            f"{name} never ends: name the events after which nothing more is expected, such as "
            "ends=[TicketIssued, BookingExpired]"
        )
    for event in (*events, *ends):
        if not (isinstance(event, type) and issubclass(event, Event) and event is not Event):
            raise DefinitionError(f"{name}: {event!r:.100} is no event: list classes, such as events=[SeatHeld]")
    if stuck_after is not None and not (math.isfinite(stuck_after) and stuck_after > 0):
        raise DefinitionError(f"{name}: stuck_after is a number of seconds above 0, such as stuck_after=900")


def _field(name: str, event: type[Event], by: str | Mapping[type[Event], str]) -> str:
    field = by if isinstance(by, str) else by.get(event)
    if field is None:
        raise DefinitionError(f"{name}: by= says for no field of {event.__name__} which {name} it tells of; add it")
    if field not in event.model_fields:
        raise DefinitionError(
            f"{name}: {event.__name__} has no field {field!r} (it has {', '.join(event.model_fields)}). Give it one, "
            f'or say which one it is: by={{{event.__name__}: "…", …}}'
        )
    return field
