"""Routes as text: written to JSON, and read from JSON or TOML. What is read is checked as what is written in Python is.

```toml
[[routes]]
prefix = "/api/bills"
service = "billing"
strip_prefix = "/api"
allow = "signed-in"
filters = [{ kind = "rate-limit", limit = "60/m burst=20" }]
```
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Final

import orjson
from pydantic import TypeAdapter, ValidationError

from microkit.errors import ConfigurationError, DefinitionError
from microkit.gateway.filters import KINDS, Filter
from microkit.gateway.route import Route
from microkit.gateway.table import RouteTable

_OWN: Final = [field for field in fields(Route) if field.init]
_PLAIN: Final = {field.name: field for field in _OWN if field.name != "filters"}


def to_data(routes: Sequence[Route]) -> list[dict[str, Any]]:
    """The routes as plain data, which JSON can hold: what differs from the defaults."""
    return [_route_data(route) for route in routes]


def from_data(data: object, *, kinds: Mapping[str, type[Filter]] = KINDS) -> tuple[Route, ...]:
    """Routes of plain data: a list, or an object that holds one under ``routes``. ``kinds`` are the filters by kind;
    add your own to :data:`~microkit.gateway.filters.KINDS`.

    Raises:
        ConfigurationError: it does not describe routes; the message names the place.
        DefinitionError: it describes routes that cannot work.
    """
    entries = data.get("routes") if isinstance(data, Mapping) else data
    if not isinstance(entries, list):
        raise ConfigurationError("routes: there is no list of routes; write [[routes]] in TOML, a list in JSON")
    routes = tuple(_route(entry, f"routes[{place}]", kinds) for place, entry in enumerate(entries))
    RouteTable(routes)
    return routes


def read_routes(path: Path, *, kinds: Mapping[str, type[Filter]] = KINDS) -> tuple[Route, ...]:
    """The routes in a file, ``.toml`` or ``.json``.

    Raises:
        ConfigurationError: it cannot be read, or does not describe routes.
        DefinitionError: it describes routes that cannot work.
    """
    try:
        text = path.read_bytes()
        data = tomllib.loads(text.decode()) if path.suffix == ".toml" else orjson.loads(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, orjson.JSONDecodeError) as error:
        raise ConfigurationError(f"the routes cannot be read from {path}: {error}") from None
    try:
        return from_data(data, kinds=kinds)
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from None


def _route_data(route: Route) -> dict[str, Any]:
    found = {
        name: value
        for name, field in _PLAIN.items()
        if (value := _plain(getattr(route, name))) != _plain(_default(field))
        or field.default is MISSING is field.default_factory
    }
    if route.filters:
        found["filters"] = [_filter_data(one) for one in route.filters]
    return found


def _filter_data(one: Filter) -> dict[str, Any]:
    adapter: TypeAdapter[Filter] = TypeAdapter(type(one))
    dumped: dict[str, Any] = adapter.dump_python(one, mode="json")
    defaults = {field.name: _plain(_default(field)) for field in fields(one)}
    return {"kind": one.kind} | {name: value for name, value in dumped.items() if value != defaults.get(name, MISSING)}


def _default(field: Any) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default


def _plain(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_plain(one) for one in value]
    return dict(value) if isinstance(value, Mapping) else value


def _route(entry: object, where: str, kinds: Mapping[str, type[Filter]]) -> Route:
    if not isinstance(entry, dict):
        raise ConfigurationError(f"{where} is no route: write prefix and service")
    known = {name: entry[name] for name in _PLAIN if name in entry}
    if unknown := entry.keys() - _PLAIN.keys() - {"filters"}:
        raise ConfigurationError(f"{where} has {', '.join(sorted(unknown))}, which no route has: {', '.join(_PLAIN)}")
    filters = entry.get("filters", [])
    if not isinstance(filters, list):
        raise ConfigurationError(f"{where}.filters is no list")
    found = [_filter(one, f"{where}.filters[{place}]", kinds) for place, one in enumerate(filters)]
    try:
        return TypeAdapter(Route).validate_python(known | {"filters": found})
    except ValidationError as error:
        raise ConfigurationError(f"{where}.{_first(error)}") from None


def _filter(entry: object, where: str, kinds: Mapping[str, type[Filter]]) -> Filter:
    kind = entry.get("kind") if isinstance(entry, dict) else None
    chosen = kinds.get(kind) if isinstance(kind, str) else None
    if not isinstance(entry, dict) or chosen is None:
        raise ConfigurationError(f"{where}: {kind!r} is no kind of filter: {', '.join(sorted(kinds))}")
    given = {name: value for name, value in entry.items() if name != "kind"}
    if unknown := given.keys() - {field.name for field in fields(chosen)}:
        raise ConfigurationError(f"{where}: {kind} has no {', '.join(sorted(unknown))}")
    try:
        return TypeAdapter(chosen).validate_python(given)
    except ValidationError as error:
        raise ConfigurationError(f"{where}.{_first(error)}") from None


def _first(error: ValidationError) -> str:
    """The first of what is wrong. What a dataclass itself refuses says all that is to be said."""
    first = error.errors(include_url=False, include_input=False)[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, DefinitionError):
        return str(cause)
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
