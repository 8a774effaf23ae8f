"""From deliveries to the handlers of their events: decoded, in a transaction, once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from microkit.bus.port import Delivery
from microkit.bus.subscription import Batching, Subscription, Within
from microkit.context import WorkContext, current
from microkit.db import Database, Transaction
from microkit.db.failure import DatabaseUnavailable, StorageFull
from microkit.declared import Listener, topics_of
from microkit.errors import DefinitionError, UndecodableMessage
from microkit.injection import Bound, Getter, bind
from microkit.message import Event, Message
from microkit.outbox import effect_once, effects_once

MOST_TOGETHER: Final = 100
"""Messages in one transaction, or in one call of a handler of lists, unless its ``batch`` says otherwise."""

TARGET: Final = 0.1
"""Seconds that the handlers of one transaction may take together before fewer messages are put into the next: they run
one after the other, and its rows stay locked for as long."""

OUTAGES: Final = (DatabaseUnavailable, StorageFull)
"""What is never held against a message: the service's own database is away, or has no room."""


@dataclass(frozen=True, slots=True)
class EventScope:
    """What a handler's parameters are taken from."""

    event: Event
    message: Message
    tx: Transaction | None


@dataclass(frozen=True, slots=True)
class BatchScope:
    """What the parameters of a handler of lists are taken from."""

    events: list[Event]
    messages: list[Message]
    tx: Transaction | None


def subscription_of(
    group: str, listeners: Sequence[Listener], resources: Mapping[Any, object], database: Database
) -> Subscription:
    """What a group does, from the handlers that it has.

    Raises:
        DefinitionError: parameters cannot be bound, or the handlers do not go together.
    """
    first = listeners[0]
    options = first.options
    if any(listener.options != options for listener in listeners):
        raise DefinitionError(f"the handlers of the group {group} have different options: give them the same ones")
    handler: GroupHandler | ListHandler
    if any(listener.is_batch for listener in listeners):
        if len(listeners) > 1:
            raise DefinitionError(f"{group} has a handler of lists, which must be the only one of its group")
        if options.deadline:
            raise DefinitionError(
                f"{group} has a handler of lists, and each event a deadline of its own: take one event at a time, or "
                "leave deadline=True out"
            )
        handler = ListHandler(first, resources, database)
    else:
        handler = GroupHandler(listeners, resources, database)
    return Subscription(
        group,
        topics_of(listeners),
        handler,
        batching=None if options.deadline else handler.batching,
        concurrency=options.concurrency,
        attempts=options.attempts,
        backoff=options.backoff,
        timeout=options.timeout,
        dead_letter=options.dead_letter,
        ignore=options.ignore,
        outages=(*options.outages, *(each for each in OUTAGES if each not in options.named())),
        deadline=options.deadline,
    )


class GroupHandler:
    """Handles the deliveries of one consumer group.

    A handler that takes a ``Transaction`` runs inside the one that records the message as handled; another must bear
    that a message comes twice. Where all handlers of the group take one, several messages share a transaction.
    """

    def __init__(self, listeners: Sequence[Listener], resources: Mapping[Any, object], database: Database) -> None:
        self._group = listeners[0].group
        self._database = database
        self._known = frozenset[str]().union(*(listener.siblings() for listener in listeners))
        self._handlers = {
            listener.event.event_type: (listener.event, _bind(listener, resources)) for listener in listeners
        }
        most = listeners[0].options.batch or MOST_TOGETHER
        together = all(handler.wants(Transaction) for _, handler in self._handlers.values())
        self.batching = Batching(self.batch, most, each=True, target=TARGET) if together and most > 1 else None

    async def __call__(self, delivery: Delivery) -> None:
        """Handles one delivery.

        Raises:
            UndecodableMessage: its type is unknown, or its payload does not fit.
        """
        message = delivery.message
        found = self._decode(message)
        if found is None:
            return
        event, handler = found
        if not handler.wants(Transaction):
            await handler(EventScope(event, message, None))
            return

        async def work(tx: Transaction) -> None:
            await handler(EventScope(event, message, tx))

        await effect_once(self._database, self._group, message, work)

    async def batch(self, deliveries: Sequence[Delivery], within: Within) -> Sequence[Delivery]:
        """Handles several in one transaction; what cannot be decoded is left."""
        decoded, left = _sort_out(deliveries, self._decode)
        todo = {id(delivery.message): (delivery, *found) for delivery, found in decoded if found is not None}
        if not todo:
            return left

        async def work(tx: Transaction, fresh: Sequence[Message]) -> None:
            for message in fresh:
                delivery, event, handler = todo[id(message)]
                with within(delivery):
                    await handler(EventScope(event, message, tx))

        messages = [delivery.message for delivery, _, _ in todo.values()]
        await effects_once(self._database, self._group, messages, work)
        return left

    def _decode(self, message: Message) -> tuple[Event, Bound[EventScope]] | None:
        """The event and its handler; ``None`` for an event of this topic that others handle."""
        found = self._handlers.get(message.type)
        if found is None:
            if message.type in self._known:
                return None
            raise UndecodableMessage("unknown-type", f"{message.type[:200]!r} is no event that {self._group} knows")
        kind, handler = found
        return kind.from_message(message), handler


class ListHandler:
    """Handles the deliveries of a group whose handler takes several events at once (``events: list[BillPaid]``)."""

    def __init__(self, listener: Listener, resources: Mapping[Any, object], database: Database) -> None:
        self._group = listener.group
        self._event = listener.event
        self._known = listener.siblings()
        self._database = database
        self._handler = _bind_list(listener, resources)
        options = listener.options
        self.batching = Batching(self.batch, options.batch or MOST_TOGETHER, options.wait)

    async def __call__(self, delivery: Delivery) -> None:
        """Handles one delivery, as a list of one.

        Raises:
            UndecodableMessage: its type is unknown, or its payload does not fit.
        """
        event = self._decode(delivery.message)
        if event is not None:
            await self._handle([(event, delivery.message)], retried=True)

    async def batch(self, deliveries: Sequence[Delivery], _within: Within) -> Sequence[Delivery]:
        """Handles several; what cannot be decoded is left."""
        decoded, left = _sort_out(deliveries, self._decode)
        events = [(event, delivery.message) for delivery, event in decoded if event is not None]
        if events:
            await self._handle(events, retried=False)
        return left

    async def _handle(self, found: Sequence[tuple[Event, Message]], *, retried: bool) -> None:
        if not self._handler.wants(Transaction):
            await self._handler(BatchScope([event for event, _ in found], [message for _, message in found], None))
            return
        events = {id(message): event for event, message in found}

        async def work(tx: Transaction, fresh: Sequence[Message]) -> None:
            await self._handler(BatchScope([events[id(message)] for message in fresh], list(fresh), tx))

        if retried:
            (_, message) = found[0]
            await effect_once(self._database, self._group, message, lambda tx: work(tx, [message]))
        else:
            await effects_once(self._database, self._group, [message for _, message in found], work)

    def _decode(self, message: Message) -> Event | None:
        if message.type == self._event.event_type:
            return self._event.from_message(message)
        if message.type in self._known:
            return None
        raise UndecodableMessage("unknown-type", f"{message.type[:200]!r} is no event that {self._group} knows")


def _sort_out(
    deliveries: Sequence[Delivery], decode: Callable[[Message], Any]
) -> tuple[list[tuple[Delivery, Any]], list[Delivery]]:
    """What can be decoded, and what is left: messages that cannot, and the later ones of their keys."""
    decoded: list[tuple[Delivery, Any]] = []
    left: list[Delivery] = []
    behind: set[tuple[str, str]] = set()
    for delivery in deliveries:
        lane = (delivery.message.topic, delivery.message.key)
        if behind and lane in behind:
            left.append(delivery)
            continue
        try:
            decoded.append((delivery, decode(delivery.message)))
        except UndecodableMessage:
            behind.add(lane)
            left.append(delivery)
    return decoded, left


def _bind(listener: Listener, resources: Mapping[Any, object]) -> Bound[EventScope]:
    by_type: dict[Any, Getter[EventScope]] = {
        listener.event: lambda scope: scope.event,
        Message: lambda scope: scope.message,
        Transaction: lambda scope: scope.tx,
        WorkContext: lambda _: current(),
        **{kind: constant(value) for kind, value in resources.items()},
    }
    return bind(listener.handler, by_name={"event": lambda scope: scope.event}, by_type=by_type)


def _bind_list(listener: Listener, resources: Mapping[Any, object]) -> Bound[BatchScope]:
    event: Any = listener.event
    by_type: dict[Any, Getter[BatchScope]] = {
        list[event]: lambda scope: scope.events,
        Sequence[event]: lambda scope: scope.events,
        list[Message]: lambda scope: scope.messages,
        Transaction: lambda scope: scope.tx,
        WorkContext: lambda _: current(),
        **{kind: constant(value) for kind, value in resources.items()},
    }
    return bind(listener.handler, by_name={}, by_type=by_type)


def constant(value: object) -> Callable[[Any], Any]:
    """A getter that always gives ``value``."""
    return lambda _: value
