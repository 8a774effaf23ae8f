"""What is served: operations of contracts, inline routes, mounted applications."""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import NoneType
from typing import Any, Final, Literal, get_args, get_origin, get_type_hints

from pydantic import BaseModel, SecretBytes, SecretStr
from starlette.responses import Response
from starlette.types import ASGIApp

from microkit.contract import SAFE_METHODS, Header, Operation, Parameter, Place, Roles, roles_of
from microkit.db import Transaction
from microkit.errors import DefinitionError, Problem
from microkit.injection import bare
from microkit.page import PageRequest
from microkit.resilience.rate import Limit
from microkit.web.schema import types_within

Transacts = Literal["reads", "writes"]
"""What a request does in the database, where it takes a connection of it: those that read may have a queue of their
own, as with SQLite, whose one writer keeps nobody from reading."""

Handler = Callable[..., Awaitable[Any]]

_SECRETS: Final = (SecretStr, SecretBytes)
_IN_PATH: Final = re.compile(r"{(\w+)(?::\w+)?}")


@dataclass(frozen=True, slots=True)
class InlineRoute:
    """A route without a contract, for small things.

    ``path`` may hold ``{name}`` and, for the rest of a path, ``{name:path}``. The handler's parameters that are neither
    in the path nor offered by type are read from the body where they are pydantic models or called ``body``, else from
    the query. A ``body: bytes`` is taken as it comes, whatever its media type. The handler returns anything that
    pydantic can write, ``None``, or a Starlette ``Response``.
    """

    method: str
    path: str
    handler: Handler
    allow: Roles
    status: int = 200
    raises: tuple[type[Problem], ...] = ()
    timeout: float | None = None

    @property
    def limited_as(self) -> str:
        """What its rate limit is called: ``POST /path``."""
        return f"{self.method} {self.path}"


@dataclass(frozen=True, slots=True)
class Mount:
    """Any ASGI application under ``path``; it sees ``path`` as its ``root_path``.

    It gets the limits on headers and URL, telemetry and problem documents; ``allow`` is checked before it is called,
    and the caller stands in ``scope["state"]["principal"]``. Its bodies stream both ways. Its lifespan is not run.
    """

    path: str
    app: ASGIApp
    allow: Roles


@dataclass(frozen=True, slots=True)
class Surface:
    """Everything that one service serves, and what it is called.

    Without ``internals`` there is no ``/metrics``, and ``/health`` names no parts: for a port that the outside reaches.
    ``metrics`` is asked for the text of ``/metrics`` where it is not this process' own, and ``ready``, where this
    process is not ready, whether another is that serves the same on the same port.
    """

    service: str
    title: str = ""
    version: str = ""
    operations: Sequence[tuple[Operation[..., Any], Handler]] = ()
    routes: Sequence[InlineRoute] = ()
    mounts: Sequence[Mount] = ()
    internals: bool = True
    limits: Mapping[str, Limit] = field(default_factory=dict)
    """Rate limits, by an operation's name (``Billing.create``) or an inline route's (``POST /path``)."""
    metrics: Callable[[], Awaitable[bytes]] | None = None
    ready: Callable[[], Awaitable[bool]] | None = None
    asyncapi: Callable[[], Mapping[str, Any]] | None = None
    """Writes the document of its events, where it has some."""


@dataclass(frozen=True, slots=True)
class Route:
    """One operation or inline route, resolved: what binding, routing and the OpenAPI document are made from."""

    name: str
    method: str
    path: str
    handler: Handler
    allow: tuple[str, ...]
    status: int
    parameters: tuple[Parameter, ...]
    result: Any
    group: str = ""
    description: str = ""
    raises: tuple[type[Problem], ...] = ()
    timeout: float | None = None
    idempotent: bool = True

    @property
    def limited_as(self) -> str:
        """What its rate limit is called: ``Billing.create``, or ``POST /path`` of an inline route."""
        return self.name if self.group else f"{self.method} {self.path}"

    @property
    def safe(self) -> bool:
        """Whether it only reads (RFC 9110, 9.2.1)."""
        return self.method in SAFE_METHODS

    @property
    def empty(self) -> bool:
        """Whether a success has no body."""
        return self.result in (None, NoneType)

    @property
    def transacts(self) -> bool:
        """Whether the handler takes a ``Transaction``."""
        return any(bare(one) is Transaction for one in get_type_hints(self.handler, include_extras=True).values())

    @property
    def transaction(self) -> Transacts | None:
        """What its transaction does, where the handler takes one."""
        if not self.transacts:
            return None
        return "reads" if self.safe else "writes"

    @property
    def remembered(self) -> bool:
        """Whether replies are kept by Idempotency-Key.

        Not where the work is outside of the transaction, harmless to repeat, streamed, or where the body holds a secret
        (a password, a refresh token): neither its fingerprint nor what it was traded for may lie in a table.
        """
        return self.transacts and not (self.safe or self.idempotent or self.streams or self.holds_secret)

    @property
    def streams(self) -> bool:
        """Whether the handler answers with a Starlette ``Response`` of its own."""
        kind = bare(self.result)
        return isinstance(kind, type) and issubclass(kind, Response)

    @property
    def holds_secret(self) -> bool:
        """Whether the body has a field that pydantic keeps secret."""
        return self.body is not None and any(kind in _SECRETS for kind in types_within(self.body.annotation))

    @property
    def body(self) -> Parameter | None:
        return next((one for one in self.parameters if one.place is Place.BODY), None)

    @staticmethod
    def of_operation(operation: Operation[..., Any], handler: Handler) -> Route:
        return Route(
            name=operation.qualified_name,
            method=operation.method,
            path=operation.path,
            handler=handler,
            allow=operation.allow,
            status=operation.status,
            parameters=operation.parameters,
            result=operation.result,
            group=operation.contract.__name__,
            description=operation.description,
            raises=operation.raises,
            timeout=operation.timeout,
            idempotent=operation.idempotent,
        )

    @staticmethod
    def of_inline(inline: InlineRoute, injected: Collection[Any]) -> Route:
        """Reads the handler's signature; ``injected`` are the types that are bound by type."""
        where = f"{inline.method} {inline.path}"
        allow = roles_of(inline.allow, where)
        if not inline.path.startswith("/"):
            raise DefinitionError(f"{where}: the path begins with a slash")
        hints = get_type_hints(inline.handler, include_extras=True)
        safe = inline.method in SAFE_METHODS
        return Route(
            name=inline.handler.__name__,
            method=inline.method,
            path=inline.path,
            handler=inline.handler,
            allow=allow,
            status=inline.status,
            parameters=_inline_parameters(inline, hints, injected, safe=safe),
            result=hints.get("return", Any),
            description=inspect.getdoc(inline.handler) or "",
            raises=inline.raises,
            timeout=inline.timeout,
            idempotent=safe or inline.method in {"PUT", "DELETE"},
        )


def _inline_parameters(
    inline: InlineRoute, hints: dict[str, Any], injected: Collection[Any], *, safe: bool
) -> tuple[Parameter, ...]:
    in_path = set(_IN_PATH.findall(inline.path))
    found = []
    for name, parameter in inspect.signature(inline.handler).parameters.items():
        if name not in hints:
            raise DefinitionError(f"{inline.method} {inline.path}: parameter {name!r} needs a type")
        if name in in_path or not _is_injected(hints[name], injected):
            found.append(_inline_parameter(name, hints[name], parameter.default, in_path))
    missing = in_path - {parameter.name for parameter in found}
    if missing:
        raise DefinitionError(f"{inline.method} {inline.path}: the handler has no parameter for {sorted(missing)}")
    bodies = [parameter.name for parameter in found if parameter.place is Place.BODY]
    if len(bodies) > (0 if safe else 1):
        raise DefinitionError(f"{inline.method} {inline.path}: {bodies} would be read from the body")
    return tuple(found)


def _is_injected(annotation: Any, injected: Collection[Any]) -> bool:
    try:
        return bare(annotation) in injected
    except TypeError:  # cannot be hashed, so it is no type of ours
        return False


def _inline_parameter(name: str, annotation: Any, default: Any, in_path: set[str]) -> Parameter:
    kind = bare(annotation)
    if name in in_path:
        return Parameter(name, Place.PATH, annotation, inspect.Parameter.empty, name)
    for mark in get_args(annotation)[1:] if kind is not annotation else ():
        if isinstance(mark, Header):
            return Parameter(name, Place.HEADER, annotation, default, mark.name)
    if kind is PageRequest:
        return Parameter(
            name, Place.QUERY, annotation, PageRequest() if default is inspect.Parameter.empty else default, name
        )
    is_model = isinstance(kind, type) and get_origin(kind) is None and issubclass(kind, BaseModel)
    place = Place.BODY if is_model or name == "body" else Place.QUERY
    return Parameter(name, place, annotation, default, name)
