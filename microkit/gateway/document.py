"""One OpenAPI document made of those of the services behind the gateway."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from microkit.contract import services_only
from microkit.errors import Problem
from microkit.gateway.route import Route, RouteTable
from microkit.gateway.upstream import Upstreams

_TIMEOUT = 3.0
_FRESH = 10.0
"""Seconds for which a merged document is given out without asking the services again."""

_METHODS = frozenset({"get", "put", "post", "delete", "patch", "head", "options"})

Document = dict[str, Any]


class MergedDocument:
    """Asks each service for ``/openapi.json`` and merges what the routes let through.

    A service that does not answer is left as it was last seen and named under ``x-unavailable``.
    """

    def __init__(self, title: str, routes: Sequence[Route], upstreams: Upstreams) -> None:
        self._title = title
        self._routes = routes
        self._upstreams = upstreams
        self._last_seen: dict[str, Document] = {}
        self._merged: Document | None = None
        self._merged_at = 0.0
        self._lock = asyncio.Lock()

    async def read(self) -> Document:
        async with self._lock:
            now = time.monotonic()
            if self._merged is None or now - self._merged_at > _FRESH:
                services = list(dict.fromkeys(route.service for route in self._routes))
                answered = await asyncio.gather(*(self._ask(service) for service in services))
                missing = [service for service, fresh in zip(services, answered, strict=True) if not fresh]
                self._merged = merge(self._title, self._routes, self._last_seen, missing)
                # One that lacks a part is asked for again at once.
                self._merged_at = now if not missing else 0.0
            return self._merged

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
    title: str, routes: Sequence[Route], documents: Mapping[str, Document], missing: Sequence[str] = ()
) -> Document:
    """The operations of ``documents`` (by service) that can be reached through ``routes``, under their public paths.

    Components of the same name and different content get the service's name in front.
    """
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
                    tagged = {name: _tagged(value, service) for name, value in operations.items()}
                    paths.setdefault(public, {}).update(_with_references(tagged, renamed))
                    used.append(service)
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


def _tagged(operation: Any, service: str) -> Any:
    if not isinstance(operation, dict) or "responses" not in operation:
        return operation
    changed = {**operation, "tags": [service]}
    if "operationId" in operation:
        changed["operationId"] = f"{service}.{operation['operationId']}"
    return changed


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
