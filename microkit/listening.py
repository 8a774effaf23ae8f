"""From a delivery to the handler of its event: decoded, in a transaction, once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from microkit.bus.port import Delivery
from microkit.context import WorkContext, current
from microkit.db import Database, Transaction
from microkit.declared import Listener
from microkit.errors import UndecodableMessage
from microkit.injection import Bound, Getter, bind
from microkit.message import Event, Message
from microkit.outbox import effect_once


@dataclass(frozen=True, slots=True)
class EventScope:
    """What a handler's parameters are taken from."""

    event: Event
    message: Message
    tx: Transaction | None


class GroupHandler:
    """Handles the deliveries of one consumer group.

    A handler that takes a ``Transaction`` runs inside the one that records the message as handled; another must bear
    that a message comes twice.
    """

    def __init__(self, listeners: Sequence[Listener], resources: Mapping[Any, object], database: Database) -> None:
        self._group = listeners[0].group
        self._database = database
        self._known = frozenset[str]().union(*(listener.siblings() for listener in listeners))
        self._handlers = {
            listener.event.event_type: (listener.event, _bind(listener, resources)) for listener in listeners
        }

    async def __call__(self, delivery: Delivery) -> None:
        """Handles one delivery.

        Raises:
            UndecodableMessage: its type is unknown, or its payload does not fit.
        """
        message = delivery.message
        found = self._handlers.get(message.type)
        if found is None:
            if message.type in self._known:
                return  # of this topic, for others
            raise UndecodableMessage("unknown-type", f"{message.type[:200]!r} is no event that {self._group} knows")
        kind, handler = found
        event = kind.from_message(message)
        if not handler.wants(Transaction):
            await handler(EventScope(event, message, None))
            return

        async def work(tx: Transaction) -> None:
            await handler(EventScope(event, message, tx))

        await effect_once(self._database, self._group, message, work)


def _bind(listener: Listener, resources: Mapping[Any, object]) -> Bound[EventScope]:
    by_type: dict[Any, Getter[EventScope]] = {
        listener.event: lambda scope: scope.event,
        Message: lambda scope: scope.message,
        Transaction: lambda scope: scope.tx,
        WorkContext: lambda _: current(),
        **{kind: constant(value) for kind, value in resources.items()},
    }
    return bind(listener.handler, by_name={"event": lambda scope: scope.event}, by_type=by_type)


def constant(value: object) -> Callable[[Any], Any]:
    """A getter that always gives ``value``."""
    return lambda _: value
