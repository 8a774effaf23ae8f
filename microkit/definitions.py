"""What a declaration must be given, seen while the module loads: each refusal says what to write instead."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar, get_type_hints

from sqlalchemy import MetaData

from microkit.choreography import Process
from microkit.contract import Contract, Operation
from microkit.errors import DefinitionError
from microkit.gateway import Gateway
from microkit.message import Event
from microkit.saga import Saga
from microkit.settings import ServiceSettings

T = TypeVar("T")

_NAME: Final = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


def a_name(given: object) -> str:
    """What a service can be called: others find it by this name, and in capitals it begins its settings.

    Raises:
        DefinitionError: no setting could have it.
    """
    if not isinstance(given, str) or not _NAME.fullmatch(given):
        raise DefinitionError(
            f"{given!r} cannot be a service's name: write lower-case words joined by dashes, such as bill-reminders"
        )
    return given


def a_subclass(given: object, of: type[T], *, where: str, instead: str) -> type[T]:
    """``given``, which must be a subclass of ``of`` and not ``of`` itself.

    Raises:
        DefinitionError: it is something else.
    """
    if not (isinstance(given, type) and issubclass(given, of) and given is not of):
        raise DefinitionError(f"{where} takes a subclass of {of.__name__}, not {_told(given)}: {instead}")
    return given


def an_event(given: object, service: str) -> type[Event]:
    """The event that ``@service.on`` was given."""
    instead = 'class BillPaid(Event, topic="billing.bills", key="bill_id") and @service.on(BillPaid)'
    return a_subclass(given, Event, where=f"{service}: @service.on", instead=instead)


def a_contract(given: object, service: str) -> type[Contract]:
    """The contract that ``service.client`` was given."""
    instead = 'class Billing(Contract, service="billing", prefix="/bills") and service.client(Billing)'
    return a_subclass(given, Contract, where=f"{service}: service.client", instead=instead)


def an_operation(given: object, service: str) -> Operation[..., Any]:
    """The operation of a contract of this service that ``@service.handles`` was given."""
    if not isinstance(given, Operation):
        raise DefinitionError(
            f"{service}: @service.handles takes an operation of a contract, not {_told(given)}: "
            "@service.handles(Billing.create)"
        )
    if given.contract.contract_service != service:
        raise DefinitionError(
            f"{given.qualified_name} belongs to {given.contract.contract_service!r}, not to {service!r}: handle it "
            f"there, or call it from here through service.client({given.contract.__name__})"
        )
    return given


def a_saga(given: object, service: str) -> Saga[Any]:
    """The definition that ``service.saga`` was given."""
    if not isinstance(given, Saga):
        raise DefinitionError(
            f"{service}: service.saga takes a definition, not {_told(given)}: "
            'pay = Saga("pay", PayState, [...]) and service.saga(pay)'
        )
    return given


def a_process(given: object, service: str) -> Process:
    """The definition that ``service.process`` was given."""
    if not isinstance(given, Process):
        raise DefinitionError(
            f"{service}: service.process takes a definition, not {_told(given)}: "
            'booking = Process("booking", by="booking_id", events=[...], ends=[...]) and service.process(booking)'
        )
    return given


def an_async_function(given: Callable[..., Any], where: str) -> None:
    """Refuses what cannot be awaited. A wrapper tells by ``functools.wraps`` what it wraps.

    Raises:
        DefinitionError: it is not written with ``async def``.
    """
    if not callable(given):
        raise DefinitionError(f"{where}: {_told(given)} is no function: write the handler with async def below it")
    if not inspect.iscoroutinefunction(inspect.unwrap(given)):
        name = getattr(given, "__name__", "handler")
        name = name if name.isidentifier() else "handler"
        raise DefinitionError(
            f"{where}: {_named(given)} is not async: write `async def {name}(...)`. What blocks belongs into a thread: "
            "await asyncio.to_thread(...)"
        )


def a_resource(given: Callable[..., Any]) -> type:
    """The type that an async generator function yields, read from its annotation (``-> AsyncIterator[Horizon]``)."""
    yielded = getattr(get_type_hints(given).get("return"), "__args__", ()) if inspect.isasyncgenfunction(given) else ()
    if not yielded:
        name = getattr(given, "__name__", "thing")
        raise DefinitionError(
            f"{_named(given)} is no resource: write `async def {name}(...) -> AsyncIterator[Thing]` "
            "and yield the thing once"
        )
    kind: type = yielded[0]
    return kind


def an_app(path: object, app: object, service: str) -> None:
    """Refuses what cannot be mounted.

    Raises:
        DefinitionError: the path has no slash, or the app is none.
    """
    where = f"{service}: service.mount"
    if not isinstance(path, str) or not path.startswith("/"):
        raise DefinitionError(f'{where}({path!r}, ...): the path begins with a slash: service.mount("/old", app, ...)')
    if not (isinstance(app, Gateway) or callable(app)):
        raise DefinitionError(
            f"{where}({path!r}, ...) takes an ASGI app or a Gateway, not {_told(app)}: "
            f'service.mount({path!r}, Starlette(routes=[...]), allow="member")'
        )


def a_port(given: object, service: str) -> int:
    """A number from 0 (any free one) to 65535."""
    if not isinstance(given, int) or isinstance(given, bool) or not 0 <= given <= 65535:
        raise DefinitionError(
            f"{service}: {given!r} is no port: write a number from 1 to 65535, such as port=8000, or 0 for any free one"
        )
    return given


def a_settings_class(given: object, service: str) -> type[ServiceSettings]:
    """``ServiceSettings`` or a subclass."""
    if given is ServiceSettings:
        return ServiceSettings
    instead = "class BillingSettings(ServiceSettings) and Service(..., settings=BillingSettings)"
    return a_subclass(given, ServiceSettings, where=f"{service}: settings=", instead=instead)


def tables_and_migrations(tables: object, migrations: object, service: str) -> None:
    """Refuses a base class in place of its metadata, and a text in place of a path.

    Raises:
        DefinitionError: they are not metadata and a path.
    """
    if tables is not None and not isinstance(tables, MetaData):
        raise DefinitionError(
            f"{service}: tables= takes SQLAlchemy's metadata, not {_told(tables)}: tables=Base.metadata"
        )
    if migrations is not None and not isinstance(migrations, Path):
        raise DefinitionError(
            f"{service}: migrations= takes a Path, not {_told(migrations)}: "
            'migrations=Path(__file__).parent / "migrations"'
        )


def _told(given: object) -> str:
    return f"the class {given.__qualname__}" if isinstance(given, type) else f"{given!r:.100}"


def _named(given: object) -> str:
    name = getattr(given, "__qualname__", None)
    return f"{getattr(given, '__module__', '?')}.{name}" if name else f"{given!r:.100}"
