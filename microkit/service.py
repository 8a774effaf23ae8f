"""A service as its developer writes it: a list of declarations, without any state of a running one.

Nothing happens when a declaration is read. :meth:`Service.instance` makes something that runs; one process may run many
instances, of one service or of many, and they share nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar

from sqlalchemy import MetaData
from starlette.types import ASGIApp

from microkit import definitions
from microkit.bus.port import Bus
from microkit.choreography import Process, follower
from microkit.contract import Contract, Operation, Roles, roles_of
from microkit.declared import Declared, Listener, ListenOptions, Mounted, Resource
from microkit.discovery.memory import MemoryRegistry
from microkit.errors import DefinitionError
from microkit.gateway import Gateway
from microkit.instance import ClientOfRunning, Instance
from microkit.message import Event
from microkit.resilience.rate import Limit
from microkit.saga import Saga
from microkit.settings import ServiceSettings, load
from microkit.telemetry import TraceRing
from microkit.web import InlineRoute

P = ParamSpec("P")
H = ParamSpec("H")
R = TypeVar("R")
C = TypeVar("C", bound=Contract)


class _Inline(Protocol):
    """A decorator that returns what it is given. A Protocol, so that its type variables are solved at each use."""

    def __call__(self, handler: Callable[H, Awaitable[R]], /) -> Callable[H, Awaitable[R]]: ...


class Service:
    """One microservice.

    ``name`` is what others find it by and, in capitals, the prefix of its settings. ``port`` is where it listens unless
    the settings say otherwise. ``tables`` is the metadata of its own tables, ``migrations`` the folder with its Alembic
    versions; a service with neither, that handles no event and runs no saga, has no database.
    """

    def __init__(
        self,
        name: str,
        *,
        port: int = 8000,
        settings: type[ServiceSettings] = ServiceSettings,
        tables: MetaData | None = None,
        migrations: Path | None = None,
        title: str = "",
        version: str = "0.1.0",
    ) -> None:
        definitions.tables_and_migrations(tables, migrations, name)
        self.declared = Declared(
            name=definitions.a_name(name),
            port=definitions.a_port(port, name),
            settings=definitions.a_settings_class(settings, name),
            tables=tables,
            migrations=migrations,
            title=title or name.replace("-", " ").title(),
            version=version,
        )

    def __repr__(self) -> str:
        return f"<Service {self.name}>"

    @property
    def name(self) -> str:
        return self.declared.name

    def handles(
        self, operation: Operation[P, R], *, limit: Limit | None = None
    ) -> Callable[[Callable[H, Awaitable[R]]], Callable[H, Awaitable[R]]]:
        """Says which function carries out an operation of a contract.

        Its parameters are bound by name to the operation's, and by type to a ``Transaction``, the ``Principal``, a
        typed client, the settings or a resource. A transaction is committed before the answer is sent. ``limit`` is how
        often it may be called, ``Limit(10, per=60)``; the setting ``rate_limits`` may say otherwise.

        Raises:
            DefinitionError: the operation belongs to another service, or has a handler already.
        """
        definitions.an_operation(operation, self.name)

        def register(handler: Callable[H, Awaitable[R]]) -> Callable[H, Awaitable[R]]:
            definitions.an_async_function(handler, f"@service.handles({operation.qualified_name})")
            first = self.declared.handlers.get(operation)
            if first is not None:
                raise DefinitionError(
                    f"{operation.qualified_name} has two handlers, {first.__qualname__} and {handler.__qualname__}: "
                    "take @service.handles away from one of them"
                )
            self.declared.handlers[operation] = handler
            if limit is not None:
                self.declared.limits[operation.qualified_name] = limit
            return handler

        return register

    def on(  # noqa: PLR0913  each is a word that a reader understands where it stands
        self,
        event: type[Event],
        *,
        group: str | None = None,
        concurrency: int = 8,
        attempts: int = 10,
        backoff: float = 0.1,
        timeout: float = 30.0,
        batch: int | None = None,
        wait: float = 0.0,
        dead_letter: tuple[type[Exception], ...] = (),
        ignore: tuple[type[Exception], ...] = (),
        outages: tuple[type[Exception], ...] = (),
        deadline: bool = False,
    ) -> Callable[[Callable[H, Awaitable[None]]], Callable[H, Awaitable[None]]]:
        """Handles an event, as a durable consumer group of its own.

        The function takes the event (``event: BillPaid``), or several at once (``events: list[BillPaid]``). With a
        ``Transaction`` its effect happens once, however often the event is delivered; without one it must bear
        repetition. Events of one key are handled one after the other.

        The group is called ``<service>.<function>``. It is what the broker knows: under another name it would begin
        with the first event that is there. So name the group when you rename the function
        (``group="billing.mark_paid"``).

        ``concurrency`` keys, or batches, are worked on at once. What the handler raises is tried again, ``attempts``
        times in all, with random pauses up to ``backoff`` seconds, doubled each time up to 30; then the message goes to
        ``<topic>.dead-letter``. An attempt may last ``timeout`` seconds. Errors of the classes in ``dead_letter``, and
        :class:`~microkit.DeadLetter`, go there at once; those in ``ignore`` mean that there was nothing to do; those in
        ``outages`` that something else is away, and are waited out for as long as it takes, as is an outage of the
        service's own database. Of several classes that fit, the nearest counts.

        ``batch`` is how many messages one call, or one transaction, may have (100): the effects of handlers that take
        one event and a ``Transaction`` are committed several at a time, too, while they are fast. When it fails, its
        messages are handled one by one. With ``batch=1`` every event has a transaction of its own. ``wait`` is how many
        seconds a list may wait to fill.

        An event is handled however long its publisher has been gone, unless ``deadline`` says that it is of use only
        while somebody waits: then the deadline of the request (or other work) that published it bounds the attempt and
        all that it calls, and an event that comes later is not handled but dead-lettered as ``deadline-passed``, or
        done with where ``ignore`` has :class:`~microkit.errors.DeadlineExceeded`. Such events are handled one by one.

        Raises:
            DefinitionError: it is no event, the group handles it already, or an option makes no sense.
        """
        definitions.an_event(event, self.name)
        options = ListenOptions(
            concurrency,
            attempts,
            backoff,
            timeout,
            batch,
            wait,
            tuple(dead_letter),
            tuple(ignore),
            tuple(outages),
            deadline,
        )

        def register(handler: Callable[H, Awaitable[None]]) -> Callable[H, Awaitable[None]]:
            definitions.an_async_function(handler, f"@service.on({event.__name__})")
            name = group or f"{self.name}.{handler.__name__}"
            for listener in self.declared.listeners:
                if listener.group == name and listener.event is event:
                    raise DefinitionError(f"{name} handles {event.__name__} twice; give one of them another group")
                if listener.group == name and group is None and listener.handler is not handler:
                    raise DefinitionError(
                        f"two functions are called {handler.__name__}, so both would be the group {name}: name the "
                        f'group of one of them, such as @service.on({event.__name__}, group="{name}_2"), or of both, '
                        "to have one group with two handlers"
                    )
            self.declared.listeners.append(Listener(name, event, handler, options))
            return handler

        return register

    def resource(self, factory: Callable[H, AsyncIterator[R]]) -> Callable[H, AsyncIterator[R]]:
        """Offers something that lives as long as the service: an async generator that yields it once.

        Handlers ask for it by the type that the generator is annotated to yield; the generator's own parameters are
        bound by type to the settings, the telemetry, the database and the resources before it.
        """
        self.declared.resources.append(Resource(factory, definitions.a_resource(factory)))
        return factory

    def saga(self, definition: Saga[Any]) -> None:
        """Runs the saga's instances in this service."""
        self.declared.sagas.append(definitions.a_saga(definition, self.name))

    def process(self, definition: Process) -> None:
        """Follows a flow that nobody orchestrates by its events: ``microkit saga show ID`` says where it stands.

        The events are handled by a durable consumer group, ``<service>.process.<name>``, which only takes notes.

        Raises:
            DefinitionError: it is no definition, or the service has one of this name.
        """
        known = definitions.a_process(definition, self.name)
        if any(each.name == known.name for each in self.declared.processes):
            raise DefinitionError(f"{self.name} has two processes called {known.name}: give one of them another name")
        self.declared.processes.append(known)
        group, follow = f"{self.name}.process.{definition.name}", follower(definition)
        # One transaction an event: several would lock the rows of several processes, in an order that nobody chose.
        options = ListenOptions(batch=1, concurrency=16)
        self.declared.listeners += [Listener(group, event, follow, options) for event in definition.events]

    def client(self, contract: type[C]) -> C:
        """The other service's operations, to be called from this service's handlers, sagas and resources."""
        self.declared.clients.append(definitions.a_contract(contract, self.name))
        return contract(ClientOfRunning(contract))

    def publishes(self, *events: type[Event]) -> None:
        """Names events that the service publishes, for its AsyncAPI document.

        Not needed for those in the module of a contract that it handles, which are its own.

        Raises:
            DefinitionError: one is no event.
        """
        instead = 'class BillPaid(Event, topic="billing.bills", key="bill_id") and service.publishes(BillPaid)'
        for event in events:
            definitions.a_subclass(event, Event, where=f"{self.name}: service.publishes", instead=instead)
        self.declared.publishes.extend(events)

    def mount(self, path: str, app: ASGIApp | Gateway, *, allow: Roles) -> None:
        """Serves a whole ASGI app, or a gateway, below ``path``. It gets health, telemetry, auth and shutdown."""
        definitions.an_app(path, app, self.name)
        self.declared.mounts.append(Mounted(path, app, roles_of(allow, f"{self.name}: service.mount({path!r}, ...)")))

    def get(self, path: str, *, allow: Roles, status: int = 200, limit: Limit | None = None) -> _Inline:
        """An inline GET, for small things that no other service calls."""
        return self._inline("GET", path, allow, status, limit)

    def post(self, path: str, *, allow: Roles, status: int = 200, limit: Limit | None = None) -> _Inline:
        """An inline POST, for small things that no other service calls."""
        return self._inline("POST", path, allow, status, limit)

    def put(self, path: str, *, allow: Roles, status: int = 200, limit: Limit | None = None) -> _Inline:
        """An inline PUT, for small things that no other service calls."""
        return self._inline("PUT", path, allow, status, limit)

    def patch(self, path: str, *, allow: Roles, status: int = 200, limit: Limit | None = None) -> _Inline:
        """An inline PATCH, for small things that no other service calls."""
        return self._inline("PATCH", path, allow, status, limit)

    def delete(self, path: str, *, allow: Roles, status: int = 200, limit: Limit | None = None) -> _Inline:
        """An inline DELETE, for small things that no other service calls."""
        return self._inline("DELETE", path, allow, status, limit)

    def _inline(self, method: str, path: str, allow: Roles, status: int, limit: Limit | None) -> _Inline:
        def register(handler: Callable[H, Awaitable[R]]) -> Callable[H, Awaitable[R]]:
            where = f"{self.name}: {method} {path}"
            definitions.an_async_function(handler, where)
            route = InlineRoute(method, path, handler, roles_of(allow, where), status)
            self.declared.routes.append(route)
            if limit is not None:
                self.declared.limits[route.limited_as] = limit
            return handler

        return register

    def settings(
        self, overrides: Mapping[str, object] | None = None, *, defaults: Mapping[str, object] | None = None
    ) -> ServiceSettings:
        """The settings as an instance would find them: ``overrides`` win over the environment, ``defaults`` do not.

        Raises:
            ConfigurationError: some are missing or wrong; the message names them all.
        """
        chosen = {"port": self.declared.port, **(defaults or {})}
        return load(self.declared.settings, self.name, overrides=overrides, defaults=chosen)

    def instance(
        self,
        settings: Mapping[str, object] | ServiceSettings | None = None,
        *,
        bus: Bus | None = None,
        registry: MemoryRegistry | None = None,
        ring: TraceRing | None = None,
    ) -> Instance:
        """Something that runs, once it is entered with ``async with``.

        ``settings`` win over the environment, or are whole. A ``bus`` given here is shared and stays open, else the
        instance makes its own. In a ``registry`` the instances of one process find each other, else they are found as
        the settings say. ``ring`` collects the recent traces of several instances.

        Raises:
            ConfigurationError: a setting is missing or wrong.
        """
        loaded = settings if isinstance(settings, ServiceSettings) else self.settings(settings)
        return Instance(self.declared, loaded, bus=bus, registry=registry, ring=ring)
