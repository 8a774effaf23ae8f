"""What a service has declared: the plan that an instance is built from."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from sqlalchemy import MetaData
from starlette.types import ASGIApp

from microkit.choreography import Process
from microkit.contract import Contract, Operation
from microkit.errors import ConfigurationError, DefinitionError
from microkit.gateway import Gateway
from microkit.message import Event
from microkit.resilience.rate import Limit
from microkit.saga import Saga
from microkit.saga.replies import expected_by, handing_on
from microkit.settings import ServiceSettings
from microkit.web import InlineRoute

Handler = Callable[..., Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class ListenOptions:
    """How a consumer group handles its events. See :meth:`microkit.Service.on`."""

    concurrency: int = 8
    attempts: int = 10
    backoff: float = 0.1
    timeout: float = 30.0
    batch: int | None = None
    wait: float = 0.0
    dead_letter: tuple[type[Exception], ...] = ()
    ignore: tuple[type[Exception], ...] = ()
    outages: tuple[type[Exception], ...] = ()
    deadline: bool = False

    def named(self) -> frozenset[type[Exception]]:
        """The classes of errors that it says something about."""
        return frozenset((*self.dead_letter, *self.ignore, *self.outages))


@dataclass(frozen=True, slots=True)
class Listener:
    """One handler of one event, within a consumer group."""

    group: str
    event: type[Event]
    handler: Handler
    options: ListenOptions = ListenOptions()

    @property
    def is_batch(self) -> bool:
        """Whether the handler takes several events at once."""
        hints = get_type_hints(self.handler).values()
        return any(get_origin(hint) in {list, Sequence} and get_args(hint) == (self.event,) for hint in hints)

    def siblings(self) -> frozenset[str]:
        """The types of all events that the event's own module declares for its topic.

        A topic carries several types. Those are known, whether handled or not; any other is a stranger, and to skip it
        silently would be to lose it.
        """
        events = _events_of(self.event.__module__)
        return frozenset(event.event_type for event in events if event.event_topic == self.event.event_topic)


def _events_of(module: str) -> list[type[Event]]:
    """The events that a module holds."""
    found = vars(sys.modules[module]).values()
    return [value for value in found if isinstance(value, type) and issubclass(value, Event) and value is not Event]


def topics_of(listeners: Sequence[Listener]) -> tuple[str, ...]:
    """The topics that a group listens to."""
    return tuple(sorted({listener.event.event_topic for listener in listeners}))


@dataclass(frozen=True, slots=True)
class Resource:
    """Something that lives as long as the instance: an async generator function and the type that it yields."""

    factory: Callable[..., AsyncIterator[Any]]
    kind: type


@dataclass(frozen=True, slots=True)
class Mounted:
    """A whole app below a path, or a gateway, which becomes an app when the service starts."""

    path: str
    app: ASGIApp | Gateway
    allow: tuple[str, ...]


@dataclass(slots=True)
class Declared:
    """Everything that a :class:`microkit.Service` has been told."""

    name: str
    port: int
    settings: type[ServiceSettings]
    tables: MetaData | None
    migrations: Path | None
    title: str
    version: str
    handlers: dict[Operation[..., Any], Handler] = field(default_factory=dict)
    limits: dict[str, Limit] = field(default_factory=dict)
    routes: list[InlineRoute] = field(default_factory=list)
    mounts: list[Mounted] = field(default_factory=list)
    listeners: list[Listener] = field(default_factory=list)
    resources: list[Resource] = field(default_factory=list)
    sagas: list[Saga[Any]] = field(default_factory=list)
    processes: list[Process] = field(default_factory=list)
    clients: list[type[Contract]] = field(default_factory=list)
    publishes: list[type[Event]] = field(default_factory=list)

    @property
    def stores(self) -> bool:
        """Whether the service needs a database."""
        return bool(self.tables is not None or self.migrations or self.listeners or self.sagas)

    def heard(self) -> list[Listener]:
        """All listeners: those that were declared, and those by which sagas get the events that they wait for."""
        return [
            *self.listeners,
            *(
                Listener(expected.group(self.name), event, handing_on(expected))
                for expected in expected_by(self.sagas)
                for event in expected.events
            ),
        ]

    def groups(self) -> dict[str, list[Listener]]:
        """The listeners by their consumer group."""
        found: dict[str, list[Listener]] = {}
        for listener in self.heard():
            found.setdefault(listener.group, []).append(listener)
        return found

    def sent(self) -> list[type[Event]]:
        """The events that are the service's to publish, each once.

        They are those that :meth:`microkit.Service.publishes` names, and those that are written in the modules of the
        contracts that it handles: what a contract's module declares is its owner's to publish.
        """
        modules = dict.fromkeys(operation.contract.__module__ for operation in self.handlers)
        owned = [event for module in modules for event in _events_of(module) if event.__module__ == module]
        return list(dict.fromkeys([*owned, *self.publishes]))

    def rate_limits(self, settings: ServiceSettings) -> dict[str, Limit]:
        """What the service declares, and what the settings say over it, by ``Billing.create`` or ``POST /path``.

        Raises:
            ConfigurationError: one is no limit, or of an operation that is not there.
        """
        limits = dict(self.limits)
        known = {operation.qualified_name for operation in self.handlers}
        known |= {route.limited_as for route in self.routes}
        key = settings.origin.key("rate_limits")
        for name, text in settings.rate_limits.items():
            if name not in known:
                there = ", ".join(sorted(known)) or "none"
                raise ConfigurationError(f"{key}: {self.name} has no operation {name!r}; it has {there}")
            try:
                limits[name] = Limit.parse(text)
            except ValueError as error:
                if text != "off":
                    raise ConfigurationError(f"{key}: {error}") from None
                limits.pop(name, None)
        return limits

    def check(self) -> None:
        """Refuses what can be seen to be wrong before anything is started.

        Raises:
            DefinitionError: an operation of a contract that the service handles in part has no handler.
        """
        for contract in {operation.contract for operation in self.handlers}:
            missing = [operation for operation in contract.operations() if operation not in self.handlers]
            if missing:
                names = ", ".join(operation.qualified_name for operation in missing)
                raise DefinitionError(
                    f"{self.name} handles {contract.__name__} in part; without a handler: {names}. "
                    f"Write @service.handles({missing[0].qualified_name})"
                )
