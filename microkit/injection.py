"""How a handler's parameters get their values: decided once, at start-up, by name and then by type."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar, get_args, get_origin, get_type_hints

from microkit.errors import DefinitionError

Scope = TypeVar("Scope")

Getter = Callable[[Scope], Any]
"""Takes the scope of one call (a request, a message, a saga step) and returns a parameter's value."""


@dataclass(frozen=True, slots=True)
class Bound(Generic[Scope]):
    """A handler with its parameters bound. ``await bound(scope)`` calls it."""

    function: Callable[..., Awaitable[Any]]
    getters: tuple[tuple[str, Getter[Scope]], ...]
    types: frozenset[Any]

    def __call__(self, scope: Scope) -> Awaitable[Any]:
        return self.function(**{name: getter(scope) for name, getter in self.getters})

    def wants(self, kind: type) -> bool:
        """Whether a parameter is of this type, so that its cost is paid only where it is used."""
        return kind in self.types


def bare(annotation: Any) -> Any:
    """The type inside ``Annotated[…]``."""
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def bind(
    function: Callable[..., Awaitable[Any]],
    *,
    by_name: Mapping[str, Getter[Scope]],
    by_type: Mapping[Any, Getter[Scope]],
) -> Bound[Scope]:
    """Binds each parameter of ``function`` by its name, else by its type, else leaves its default.

    Raises:
        DefinitionError: the function is not ``async def``, or a parameter can be bound by neither.
    """
    where = f"{function.__module__}.{function.__qualname__}"
    if not inspect.iscoroutinefunction(inspect.unwrap(function)):  # a decorator may be an ordinary function
        raise DefinitionError(f"{where} must be written with async def")
    hints = get_type_hints(function, include_extras=True)
    getters: list[tuple[str, Getter[Scope]]] = []
    types = set()
    for name, parameter in inspect.signature(function).parameters.items():
        annotation = bare(hints.get(name))
        getter = by_name.get(name) or _by_type(annotation, by_type)
        if getter is None:
            if parameter.default is not inspect.Parameter.empty:
                continue
            offered = sorted(by_name) + sorted(getattr(kind, "__name__", str(kind)) for kind in by_type)
            raise DefinitionError(
                f"{where}: nothing fits the parameter {name!r} of type {annotation!r}. By name or type there are: "
                f"{', '.join(offered)}. Something of your own is offered with @service.resource"
            )
        types.add(annotation)
        getters.append((name, getter))
    return Bound(function, tuple(getters), frozenset(types))


def _by_type(annotation: Any, by_type: Mapping[Any, Getter[Scope]]) -> Getter[Scope] | None:
    try:
        return by_type.get(annotation)
    except TypeError:  # an annotation that cannot be hashed names no type of ours
        return None
