"""One OpenAPI document made of those of the services behind the gateway."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson

from microkit.contract import services_only
from microkit.errors import Problem
from microkit.gateway.route import VERSION_HEADER, Route
from microkit.gateway.table import RouteTable
from microkit.gateway.upstreams import Upstreams

_TIMEOUT = 3.0
_FRESH = 10.0
"""Seconds for which a merged document is given out without asking the services again."""

_FRESH_WITH_GAPS = 1.0

_METHODS = frozenset({"get", "put", "post", "delete", "patch", "head", "options"})

Document = dict[str, Any]


class MergedDocument:
    """Asks each service for ``/openapi.json`` and merges what the routes let through.

    A service that does not answer is left as it was last seen and named under ``x-unavailable``.
    """

    def __init__(
        self,
        title: str,
        routes: Sequence[Route],
        upstreams: Upstreams,
        own: Callable[[], Mapping[str, Any]] | None = None,
    ) -> None:
        self._own = own
        self._title = title
        self._routes = routes
        self._upstreams = upstreams
        self._last_seen: dict[str, Document] = {}
        self._missing: list[str] = []
        self._asked_at = float("-inf")
        self._merged: dict[tuple[int, ...], Document] = {}
        self._lock = asyncio.Lock()

    async def read(self, host: str = "") -> Document:
        """The document for who asks under ``host``: routes of other hosts are not in it."""
        async with self._lock:
            now = time.monotonic()
            if now - self._asked_at > _FRESH:
                services = list(dict.fromkeys(route.service for route in self._routes))
                answered = await asyncio.gather(*(self._ask(service) for service in services))
                self._missing = [service for service, fresh in zip(services, answered, strict=True) if not fresh]
                # One that lacks a part is asked for again soon, and not for each who asks: everybody may.
                self._asked_at = now if not self._missing else now - _FRESH + _FRESH_WITH_GAPS
                self._merged.clear()
            reached = [route for route in self._routes if _is_for(route, host)]
            key = tuple(map(id, reached))  # as many as there are hosts among the routes, whatever clients call us
            found = self._merged.get(key)
            if found is None:
                own = self._own() if self._own is not None else None
                found = self._merged[key] = merge(self._title, reached, self._last_seen, self._missing, own=own)
            return found

    async def _ask(self, service: str) -> bool:
        try:
            status, body = await self._upstreams.get_json(service, "/openapi.json", _TIMEOUT)
            document = orjson.loads(body)
        except (Problem, orjson.JSONDecodeError):
            return False
        if status != 200 or not isinstance(document, dict):
            return False
        self._last_seen[service] = document
        return True


def merge(
    title: str,
    routes: Sequence[Route],
    documents: Mapping[str, Document],
    missing: Sequence[str] = (),
    *,
    own: Mapping[str, Any] | None = None,
) -> Document:
    """The operations of ``documents`` (by service) that can be reached through ``routes``, under their public paths.

    Components of the same name and different content get the service's name in front. What the gateway answers itself
    (``own``) comes first, as it does in the gateway.
    """
    routes = _described(routes)
    table = RouteTable(routes)
    paths: dict[str, Document] = {}
    components: dict[str, dict[str, Any]] = {}
    used: list[str] = []
    for service, document in documents.items():
        renamed = _place_components(service, document, components)
        for route in (route for route in routes if route.service == service):
            for upstream, item in document.get("paths", {}).items():
                public = route.public_path(upstream)
                operations = _reachable(item, public, route, table)
                if operations:
                    tagged = {name: _tagged(value, service, route) for name, value in operations.items()}
                    known = paths.setdefault(public, {})
                    # The route that demands less is what a client gets that demands nothing.
                    known.update(_with_references(tagged, renamed) | (known if _demands(route) else {}))
                    used.append(service)
    if own is not None:
        renamed = _place_components("gateway", dict(own), components)
        for path, item in own.get("paths", {}).items():
            paths[path] = {**paths.get(path, {}), **_with_references(item, renamed)}
    merged: Document = {
        "openapi": "3.1.0",
        "info": {"title": title, "version": "1"},
        "tags": [{"name": service} for service in dict.fromkeys(used)],
        "paths": dict(sorted(paths.items())),
        "components": components,
    }
    if missing:
        merged["x-unavailable"] = list(missing)
    return merged


def _is_for(route: Route, host: str) -> bool:
    if not route.host:
        return True
    return host.endswith(route.host[1:]) if route.host.startswith("*.") else host == route.host


def _described(routes: Sequence[Route]) -> list[Route]:
    """Of routes that share the requests by weight, the one that gets most; the others are not meant to differ."""
    heaviest: dict[object, Route] = {}
    for route in routes:
        same = (
            route.prefix,
            route.exact,
            frozenset(route.methods),
            route.host,
            tuple(sorted(route.demanded.items())),
            tuple(sorted(route.query.items())),
        )
        if same not in heaviest or route.weight > heaviest[same].weight:
            heaviest[same] = route
    return sorted(heaviest.values(), key=_demands)


def _demands(route: Route) -> int:
    return len(route.demanded) + len(route.query)


def _reachable(item: Document, public: str, route: Route, table: RouteTable) -> Document:
    if route not in table.find(public):
        return {}
    kept = {
        name: value
        for name, value in item.items()
        if name not in _METHODS or ((not route.methods or name.upper() in route.methods) and not _internal(value))
    }
    return kept if not _METHODS.isdisjoint(kept) else {}


def _internal(operation: Any) -> bool:
    """Whether only other services may call it: nobody outside can."""
    security = operation.get("security", []) if isinstance(operation, dict) else []
    return bool(security) and all(services_only(roles) for option in security for roles in option.values())


def _tagged(operation: Any, service: str, route: Route) -> Any:
    """The operation, tagged with its service, with the headers and the query that the route demands."""
    if not isinstance(operation, dict) or "responses" not in operation:
        return operation
    changed = {**operation, "tags": [service]}
    demanded = [
        *((name, value, "header") for name, value in route.demanded.items()),
        *((name, value, "query") for name, value in route.query.items()),
    ]
    if demanded:
        changed["parameters"] = [*operation.get("parameters", ()), *(_parameter(*one) for one in demanded)]
    if "operationId" in operation:
        changed["operationId"] = f"{service}.{operation['operationId']}"
    return changed


def _parameter(name: str, value: str, place: str) -> Document:
    schema: Document = {"type": "string"}
    if value == "*":
        pass
    elif value.endswith("*"):
        schema["pattern"] = f"^{re.escape(value[:-1])}"
    else:
        schema["const"] = value
    shown = VERSION_HEADER if name == VERSION_HEADER.lower() else name
    return {"name": shown, "in": place, "required": True, "schema": schema}


def _place_components(service: str, document: Document, components: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Puts the service's components beside those that are there; returns old → new references of those renamed."""
    renamed: dict[str, str] = {}
    while True:
        # To the end of the chain: what refers to a renamed component is another component than its namesake.
        clashing = {
            f"#/components/{kind}/{name}": f"#/components/{kind}/{service}.{name}"
            for kind, entries in document.get("components", {}).items()
            for name, value in entries.items()
            if components.get(kind, {}).get(name, value) != _with_references(value, renamed)
        }
        if clashing == renamed:
            break
        renamed = clashing
    for kind, entries in document.get("components", {}).items():
        place = components.setdefault(kind, {})
        for name, value in entries.items():
            reference = renamed.get(f"#/components/{kind}/{name}", "")
            place[reference.rpartition("/")[2] or name] = _with_references(value, renamed)
    return renamed


def _with_references(node: Any, renamed: Mapping[str, str]) -> Any:
    if not renamed:
        return node
    if isinstance(node, dict):
        return {
            key: renamed.get(value, value)
            if key == "$ref" and isinstance(value, str)
            else _with_references(value, renamed)
            for key, value in node.items()
        }
    if isinstance(node, list):
        return [_with_references(value, renamed) for value in node]
    return node
