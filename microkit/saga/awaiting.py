"""Steps that wait: for an outside event, or for the reply to a command that they send.

::

    pivot(await_event(PaymentConfirmed, by="payment_id", then=note_confirmation, timeout=86_400))

    compensatable(
        request(reserve_seat, reply=SeatReserved | SeatRefused, then=note_seat, timeout=60),
        undo=request(cancel_seat, reply=SeatCancelled, timeout=60, on_timeout=ASK_AGAIN),
    )

A saga that waits holds no lease and is asked nothing: its row says when its time is over, on the database's clock. The
words are those of the *Correlation Identifier* and *Request-Reply* of Hohpe and Woolf (*Enterprise Integration
Patterns*, 2003); an event that comes early is kept, as Zeebe's message correlation has it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from types import UnionType
from typing import Any, Final, Union, get_args, get_origin

from pydantic import BaseModel

from microkit.errors import DefinitionError
from microkit.message import Event

Then = Callable[..., Awaitable[BaseModel | Mapping[str, Any] | None]]
"""An ``async def`` that notes what came: its parameters are bound by name (``state``, ``event``) and type (the state's
model, the events, ``Transaction``, ``StepContext``, resources). Its result is a step's."""

Command = Callable[..., Event]
"""A plain function that makes the command, of the state and, if it asks for one, the ``StepContext``."""

Events = type[Event] | UnionType
"""One class of events, or several joined by ``|``."""


class OnTimeout(Enum):
    """What the end of the time means, where no function says it. See ``REFUSE`` and ``ASK_AGAIN``."""

    REFUSE = "refuse"
    ASK_AGAIN = "ask-again"


REFUSE: Final = OnTimeout.REFUSE
"""``on_timeout=REFUSE``: the saga turns back. What was awaited may still happen: the step's own undo runs, too."""

ASK_AGAIN: Final = OnTimeout.ASK_AGAIN
"""``on_timeout=ASK_AGAIN``: the attempt failed. The command is sent again, as often as the step's ``retry`` has it."""

DAY: Final = 86_400.0


@dataclass(frozen=True, slots=True)
class Awaited:
    """What a step waits for. ``timeout`` is in seconds from when it begins to wait, ``keep`` for how many seconds an
    event that no saga waits for yet is kept for one that will.

    ``by`` names the event's field and the state's whose values are equal; without it the reply carries in its headers
    which saga and step it answers. ``command`` makes the command that is sent first, ``None`` where nothing is.
    """

    events: tuple[type[Event], ...]
    timeout: float
    by: tuple[str, str] | None
    then: Then | None
    on_timeout: Then | OnTimeout
    command: Command | None
    keep: float

    @property
    def title(self) -> str:
        """A name for a step that is given none."""
        named = self.command or self.then
        return named.__name__ if named is not None else f"await_{self.events[0].__name__}"

    @property
    def functions(self) -> tuple[Then, ...]:
        """What may be called when it is over."""
        return tuple(
            each for each in (self.then, self.on_timeout) if each is not None and not isinstance(each, OnTimeout)
        )


def await_event(
    event: Events,
    *,
    by: str | tuple[str, str],
    timeout: float,
    then: Then | None = None,
    on_timeout: Then | OnTimeout = REFUSE,
    keep: float = DAY,
) -> Awaited:
    """Waits for an event that somebody else causes, such as a payment provider's callback. It stands where a step's
    action stands: ``compensatable(await_event(...), undo=...)``, ``pivot(await_event(...))``, ``retriable(...)``.

    ``by`` is the field of the event that says which saga is meant, and the state's field of the same value:
    ``"payment_id"``, or ``("reference", "payment_id")`` where they have different names. ``timeout`` is in seconds;
    it goes on while no process runs. ``then`` notes what came, and may raise ``StepRefused``. When the time is over the
    saga turns back (``REFUSE``), or ``on_timeout`` is called as the action is: what it returns is the step's result.

    An event that comes before the saga waits for it is kept for ``keep`` seconds. One that comes when the waiting is
    over, or a second one, changes nothing.

    Raises:
        DefinitionError: what is awaited makes no sense; the message says what to write.
    """
    where = f"await_event({_shown(event)})"
    events = _events(event, where)
    _check_seconds(where, "timeout", timeout)
    _check_seconds(where, "keep", keep)
    if on_timeout is ASK_AGAIN:
        raise DefinitionError(
            f"{where} asks nobody, so that nobody can be asked again: give it on_timeout=REFUSE or a function"
        )
    _check_told_apart(where, events, then)
    fields = _by(where, by, events)
    return Awaited(events, float(timeout), fields, then, on_timeout, None, float(keep))


def request(
    command: Command,
    *,
    reply: Events,
    timeout: float,
    then: Then | None = None,
    on_timeout: Then | OnTimeout = REFUSE,
    by: str | tuple[str, str] | None = None,
) -> Awaited:
    """Sends a command event and waits for its reply, within one transaction and so never one without the other. It
    stands where a step's action, or its undo, stands.

    ``command`` is a plain function of the state that makes the event. A service of this framework that handles it and
    publishes the reply needs nothing more: the reply carries which saga and step it answers. Where others answer,
    ``by`` names the field of the reply, as in ``await_event``.

    When no reply came in ``timeout`` seconds the saga turns back (``REFUSE``; the command may still be carried out, and
    so the step's own undo runs as well), the command is sent again (``ASK_AGAIN``), or a function says how it goes on.

    Raises:
        DefinitionError: what is awaited makes no sense; the message says what to write.
    """
    where = f"request({getattr(command, '__name__', command)}, reply={_shown(reply)})"
    events = _events(reply, where)
    _check_seconds(where, "timeout", timeout)
    _check_told_apart(where, events, then)
    fields = None if by is None else _by(where, by, events)
    return Awaited(events, float(timeout), fields, then, on_timeout, command, DAY)


def _shown(event: object) -> str:
    return " | ".join(each.__name__ for each in _members(event)) or repr(event)


def _members(event: object) -> list[type]:
    found = get_args(event) if isinstance(event, UnionType) or get_origin(event) is Union else (event,)
    return [each for each in found if isinstance(each, type)]


def _events(event: object, where: str) -> tuple[type[Event], ...]:
    found = _members(event)
    if not found or not all(issubclass(each, Event) and each is not Event for each in found):
        raise DefinitionError(f"{where}: name the class of the event, or several as SeatReserved | SeatRefused")
    return tuple(found)


def _check_seconds(where: str, what: str, seconds: float) -> None:
    number: object = seconds
    if not isinstance(number, int | float) or not 0 < number < float("inf"):
        raise DefinitionError(
            f"{where}: {what}={seconds!r} is no number of seconds above 0: say how long, such as {what}=86_400, a day"
        )


def _check_told_apart(where: str, events: tuple[type[Event], ...], then: Then | None) -> None:
    if len(events) > 1 and then is None:
        raise DefinitionError(
            f"{where} waits for several events and treats them alike: give it then=, a function that takes the event "
            "and raises StepRefused where it is a refusal"
        )


def _by(where: str, by: str | tuple[str, str], events: tuple[type[Event], ...]) -> tuple[str, str]:
    fields = (by, by) if isinstance(by, str) else by
    for event in events:
        if fields[0] not in event.model_fields:
            raise DefinitionError(
                f"{where}: {event.__name__} has no field {fields[0]!r} to tell by which saga it is for; it has "
                f"{', '.join(event.model_fields)}"
            )
    return fields
