"""Contracts: what a service offers to others, declared once.

One operation gives the route, the validation, the typed client, the OpenAPI entry and the contract test::

    class Billing(Contract, service="billing", prefix="/bills", allow="member"):
        @post("", status=201)
        async def create(self, body: NewBill) -> Bill: ...

        @get("/{bill_id}")
        async def read(self, bill_id: UUID) -> Bill: ...

``Billing.read`` is the :class:`Operation`; ``client.read`` on an object of the class is a call to the service.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import (
    Annotated,
    Any,
    ClassVar,
    Concatenate,
    Final,
    Generic,
    ParamSpec,
    Protocol,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
    overload,
)

from microkit.errors import DefinitionError, Problem
from microkit.page import PageRequest

P = ParamSpec("P")
R = TypeVar("R")

Roles = str | tuple[str, ...]

ANYONE: Final = "*"
"""``allow=ANYONE``: no token is asked for."""

SIGNED_IN: Final = "+"
"""``allow=SIGNED_IN``: any valid token will do."""

SERVICE: Final = "service"
"""``allow=SERVICE``: another service of the system, in its own name; ``allow="service:payment"``: that one only."""


def services_only(allow: Sequence[str]) -> bool:
    """Whether nobody but services of the system is let in."""
    return bool(allow) and all(role == SERVICE or role.startswith(f"{SERVICE}:") for role in allow)


def roles_of(allow: object, where: str) -> tuple[str, ...]:
    """The roles as a tuple.

    Raises:
        DefinitionError: they let nobody in, or are no roles; ``where`` begins the sentence.
    """
    if not allow:
        raise DefinitionError(
            f'{where} does not say who may call it: write allow="member" (a role), allow=("member", "admin"), '
            "allow=SIGNED_IN or allow=ANYONE"
        )
    roles = (allow,) if isinstance(allow, str) else allow
    if not isinstance(roles, tuple) or not all(isinstance(role, str) and role for role in roles):
        raise DefinitionError(f'{where}: allow={allow!r} is no role: write allow="member" or allow=("member", "admin")')
    return roles


SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})

_PATH_PARAMETER = re.compile(r"{(\w+)}")


class Place(Enum):
    """Where in the request a parameter stands."""

    PATH = "path"
    QUERY = "query"
    HEADER = "header"
    BODY = "body"


@dataclass(frozen=True, slots=True)
class Header:
    """Marks a parameter as a header: ``etag: Annotated[str | None, Header("If-Match")] = None``."""

    name: str


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of an operation. ``wire_name`` is its name on the wire, ``default`` ``inspect.Parameter.empty``
    where it is required."""

    name: str
    place: Place
    annotation: Any
    default: Any
    wire_name: str

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty


class Caller(Protocol):
    """What carries out the calls of a client object: over HTTP, or in process in tests."""

    async def call(self, operation: Operation[..., R], arguments: Mapping[str, Any]) -> R:
        """Calls ``operation`` with ``arguments`` by parameter name and returns its validated result.

        Raises:
            Problem: one that the operation declares in ``raises``.
            RemoteProblem: any other answer that is not a success.
            DeadlineExceeded: the caller's deadline has passed.
            Unavailable: the service could not be reached; the call was not sent.
            BadGateway: the answer was lost or is no answer; the call may have been carried out.
        """
        ...


class Operation(Generic[P, R]):
    """One operation of a contract: method, path, parameters, result, and who may call it."""

    def __init__(
        self,
        declaration: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]],
        *,
        method: str,
        path: str,
        status: int,
        allow: Roles | None,
        raises: tuple[type[Problem], ...],
        timeout: float | None,
        idempotent: bool,
    ) -> None:
        self.declaration = declaration
        self.method = method
        self.own_path = path
        self.status = status
        self.raises = _problems(raises, declaration.__qualname__)
        self.timeout = timeout
        self.idempotent = idempotent
        self.hedge = False
        self.collapse = False
        self.name = declaration.__name__
        self.description = inspect.getdoc(declaration) or ""
        self._allow = allow
        self._contract: type[Contract] | None = None

    def __set_name__(self, owner: type[Contract], name: str) -> None:
        self._contract = owner
        self.name = name

    @overload
    def __get__(self, instance: None, owner: type[Contract]) -> Operation[P, R]: ...
    @overload
    def __get__(self, instance: Contract, owner: type[Contract]) -> Callable[P, Awaitable[R]]: ...
    def __get__(self, instance: Contract | None, owner: type[Contract]) -> Operation[P, R] | Callable[P, Awaitable[R]]:
        if instance is None:
            return self
        return self.bound_to(instance.caller)

    def __repr__(self) -> str:
        return f"<{self.qualified_name} {self.method} {self.path}>"

    @property
    def contract(self) -> type[Contract]:
        if self._contract is None:
            raise DefinitionError(f"{self.name} is an operation outside of a Contract class")
        return self._contract

    @property
    def qualified_name(self) -> str:
        """``Billing.create``"""
        return f"{self.contract.__name__}.{self.name}"

    @cached_property
    def path(self) -> str:
        """The whole path, with the contract's prefix: ``/bills/{bill_id}``."""
        return (self.contract.contract_prefix + self.own_path) or "/"

    @cached_property
    def allow(self) -> tuple[str, ...]:
        """The roles of which a caller must have one."""
        allow = self._allow if self._allow is not None else self.contract.contract_allow
        return roles_of(allow, self.qualified_name)

    @property
    def safe(self) -> bool:
        """Whether it only reads (RFC 9110, 9.2.1)."""
        return self.method in SAFE_METHODS

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """The parameters, each with its place in the request; resolved when first asked for."""
        hints = get_type_hints(self.declaration, include_extras=True)
        in_path = set(_PATH_PARAMETER.findall(self.path))
        found = []
        for name, parameter in list(inspect.signature(self.declaration).parameters.items())[1:]:
            if name not in hints:
                raise DefinitionError(f"{self.qualified_name}: parameter {name!r} needs a type")
            found.append(_place(name, hints[name], parameter.default, in_path))
        missing = in_path - {parameter.name for parameter in found}
        if missing:
            raise DefinitionError(f"{self.qualified_name}: the path names {sorted(missing)}, the parameters do not")
        if self.safe and any(parameter.place is Place.BODY for parameter in found):
            raise DefinitionError(f"{self.qualified_name}: a {self.method} has no body")
        return tuple(found)

    @cached_property
    def result(self) -> Any:
        """The annotated result type; ``NoneType`` where there is no content."""
        hints = get_type_hints(self.declaration, include_extras=True)
        if "return" not in hints:
            raise DefinitionError(f"{self.qualified_name} needs a result type (-> Bill, or -> None)")
        return hints["return"]

    def bound_to(self, caller: Caller) -> Callable[P, Awaitable[R]]:
        """The operation as a function that ``caller`` carries out."""
        names = [parameter.name for parameter in self.parameters]

        def call(*args: P.args, **kwargs: P.kwargs) -> Awaitable[R]:
            if len(args) > len(names):
                raise TypeError(f"{self.qualified_name} takes {len(names)} arguments, not {len(args)}")
            return caller.call(self, {**dict(zip(names, args, strict=False)), **kwargs})

        call.__name__ = call.__qualname__ = self.qualified_name
        return call


def _problems(raises: object, where: str) -> tuple[type[Problem], ...]:
    found = []
    for problem in raises if isinstance(raises, tuple) else (raises,):
        if not (isinstance(problem, type) and issubclass(problem, Problem)):
            told = problem.__name__ if isinstance(problem, type) else repr(problem)
            raise DefinitionError(
                f"{where}: raises= lists problems, the answers to the caller, and {told} is none: write "
                "class BillPaid(Conflict, status=409) and raises=(BillPaid,)"
            )
        found.append(problem)
    if not isinstance(raises, tuple):
        raise DefinitionError(f"{where}: raises= takes a tuple: write raises=({found[0].__name__},)")
    return tuple(found)


def _place(name: str, annotation: Any, default: Any, in_path: set[str]) -> Parameter:
    if name in in_path:
        return Parameter(name, Place.PATH, annotation, inspect.Parameter.empty, name)
    if name == "body":
        return Parameter(name, Place.BODY, annotation, default, name)
    if get_origin(annotation) is Annotated:
        for mark in get_args(annotation)[1:]:
            if isinstance(mark, Header):
                return Parameter(name, Place.HEADER, annotation, default, mark.name)
    if annotation is PageRequest and default is inspect.Parameter.empty:
        default = PageRequest()
    return Parameter(name, Place.QUERY, annotation, default, name)


class Contract:
    """The operations of one service. Subclass it; never write behaviour into it.

    ``service`` is the name under which the service is found, ``prefix`` stands before each path, ``allow`` is who may
    call operations that do not say so themselves.
    """

    contract_service: ClassVar[str] = ""
    contract_prefix: ClassVar[str] = ""
    contract_allow: ClassVar[Roles] = ()

    def __init_subclass__(cls, *, service: str = "", prefix: str = "", allow: Roles = ()) -> None:
        super().__init_subclass__()
        cls.contract_service = service or cls.contract_service
        cls.contract_prefix = prefix or cls.contract_prefix
        cls.contract_allow = allow or cls.contract_allow
        if not cls.contract_service:
            raise DefinitionError(
                f'{cls.__name__} needs the name of its service: class {cls.__name__}(Contract, service="billing")'
            )
        for operation in cls.operations():
            operation.allow  # noqa: B018  refuses the operation that nobody was allowed to call, while the module loads

    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        # Found in the instance's own dictionary from now on: a call costs no descriptor.
        self.__dict__.update({operation.name: operation.bound_to(caller) for operation in type(self).operations()})

    @classmethod
    def operations(cls) -> tuple[Operation[..., Any], ...]:
        """All operations, in the order they are written."""
        return tuple(value for value in vars(cls).values() if isinstance(value, Operation))


class _Declare(Protocol):
    def __call__(
        self,
        path: str,
        *,
        status: int = ...,
        allow: Roles | None = ...,
        raises: tuple[type[Problem], ...] = ...,
        timeout: float | None = ...,
        idempotent: bool = ...,
        hedge: bool = ...,
        collapse: bool = ...,
    ) -> Callable[[Callable[Concatenate[Any, P], Coroutine[Any, Any, R]]], Operation[P, R]]: ...


def _declares(method: str, *, idempotent_method: bool) -> _Declare:
    def declare(
        path: str,
        *,
        status: int = 200,
        allow: Roles | None = None,
        raises: tuple[type[Problem], ...] = (),
        timeout: float | None = None,
        idempotent: bool = idempotent_method,
        hedge: bool = False,
        collapse: bool = False,
    ) -> Callable[[Callable[Concatenate[Any, P], Coroutine[Any, Any, R]]], Operation[P, R]]:
        def decorate(declaration: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]]) -> Operation[P, R]:
            operation = Operation(
                declaration,
                method=method,
                path=path,
                status=status,
                allow=allow,
                raises=raises,
                timeout=timeout,
                idempotent=idempotent,
            )
            if (hedge and not idempotent) or (collapse and method not in SAFE_METHODS):
                raise DefinitionError(
                    f"{declaration.__qualname__}: hedge=True is for what may be done twice (idempotent=True), "
                    "collapse=True for what only reads"
                )
            operation.hedge, operation.collapse = hedge, collapse
            return operation

        return decorate

    declare.__name__ = declare.__qualname__ = method.lower()
    declare.__doc__ = f"""Declares a {method} operation.

    ``path`` follows the contract's prefix and may hold ``{{parameters}}``. ``status`` is the answer's on success.
    ``allow`` names who may call: a role, several, ``SIGNED_IN`` or ``ANYONE``. ``raises`` lists the problems that are
    part of the contract. ``timeout`` (seconds) bounds the call. ``idempotent`` says that sending it twice does no harm,
    so that a client may retry it without a key. ``hedge`` lets a client send it a second time while the first is late,
    and take the first answer; ``collapse`` lets equal reads that one caller makes at once be sent once.
    """
    return declare


get = _declares("GET", idempotent_method=True)
post = _declares("POST", idempotent_method=False)
put = _declares("PUT", idempotent_method=True)
patch = _declares("PATCH", idempotent_method=False)
delete = _declares("DELETE", idempotent_method=True)
