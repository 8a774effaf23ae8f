"""How a gateway becomes part of an instance: its routes from code or from a file, its documents, its reports."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import orjson
from pydantic import SecretStr
from starlette.requests import Request
from starlette.responses import Response

from microkit.contract import ANYONE
from microkit.declared import Declared
from microkit.errors import ConfigurationError, MicrokitError
from microkit.gateway import BoundGateway
from microkit.gateway.auth_endpoint import AUTH_PATH, AuthEndpoint
from microkit.gateway.caching.store import CacheStore
from microkit.gateway.identity import Verify
from microkit.gateway.routes_file import read_routes
from microkit.settings import ServiceSettings
from microkit.telemetry import Telemetry
from microkit.web import InlineRoute, Surface
from microkit.web.binding import OFFERED
from microkit.web.openapi import document
from microkit.web.route import Route as OwnRoute

LOOK_EVERY: Final = 1.0
"""Seconds between two looks at the routes file. Looking works where no signal arrives: in containers, whose files are
replaced from outside, and in one process with many services."""

AT_REST: Final = 0.1
"""Seconds without a change after which a file is taken to be whole."""

LONGEST_WRITE: Final = 10.0

_log = logging.getLogger(__name__)


def cache_store(url: str) -> CacheStore | None:
    """The store that ``cache_url`` names, ``None`` for memory, which each cache bounds by itself.

    Raises:
        ConfigurationError: it names none.
        MissingExtra: redis-py is not installed.
    """
    if url == "memory://":
        return None
    if url.partition("://")[0] in {"redis", "rediss"}:
        from microkit.gateway.caching.redis import RedisStore  # noqa: PLC0415  an extra

        return RedisStore(url)
    raise ConfigurationError("cache_url names no store: write memory://, redis://redis:6379/1 or rediss://…")


def setting_of(settings: ServiceSettings) -> Callable[[str], Any]:
    """Reads a setting for a filter that names it; secrets as they are.

    It raises :class:`ConfigurationError` for one that the service does not have.
    """

    def read(name: str) -> Any:
        if name not in type(settings).model_fields:
            raise ConfigurationError(
                f"{settings.origin.key(name)}: a filter of the gateway reads it, and there is no such setting"
            )
        value = getattr(settings, name)
        return value.get_secret_value() if isinstance(value, SecretStr) else value

    return read


def own_document(declared: Declared, resources: dict[Any, object]) -> Callable[[], dict[str, Any]] | None:
    """The OpenAPI document of what a gateway answers itself, ``None`` where it answers nothing itself."""
    if not declared.handlers and not declared.routes:
        return None
    surface = Surface(
        declared.name,
        title=declared.title,
        version=declared.version,
        operations=list(declared.handlers.items()),
        routes=list(declared.routes),
    )
    routes = [OwnRoute.of_operation(operation, handler) for operation, handler in declared.handlers.items()]
    routes += [OwnRoute.of_inline(inline, {*OFFERED, *resources}) for inline in declared.routes]
    made = document(surface, routes)
    return lambda: made


def inline_routes(bound: BoundGateway, *, internals: bool) -> list[InlineRoute]:
    """``/openapi.json`` of all services, and ``/gateway.json`` with what happened on each route."""
    routes = [InlineRoute("GET", "/openapi.json", _document_of(bound), (ANYONE,))]
    if internals:
        routes.append(InlineRoute("GET", "/gateway.json", _report_of(bound), (ANYONE,)))
    return routes


def auth_route(verify: Verify | None) -> InlineRoute:
    """``/internal/auth``, by which a proxy in front asks who calls: 204 with ``X-User-Id``, or 401 or 403."""
    endpoint = AuthEndpoint(verify)

    async def who_calls(request: Request) -> Response:
        query = request.query_params
        principal = await endpoint.who(dict(request.scope["headers"]), query.getlist("role"), query.getlist("scope"))
        known = {} if principal.anonymous else {"X-User-Id": principal.subject}
        return Response(status_code=204, headers=known)

    return InlineRoute("GET", AUTH_PATH, who_calls, (ANYONE,))


def _document_of(bound: BoundGateway) -> Callable[[Request], Awaitable[Response]]:
    async def openapi(request: Request) -> Response:
        document = await bound.openapi(request.headers.get("host", ""))
        return Response(orjson.dumps(document), media_type="application/json")

    return openapi


def _report_of(bound: BoundGateway) -> Callable[[], Awaitable[Response]]:
    async def report() -> Response:
        return Response(orjson.dumps(bound.report()), media_type="application/json")

    return report


class RoutesFile:
    """Keeps a gateway's routes as a file says. A file that cannot be read, or whose routes cannot work, changes
    nothing, is logged, and makes the health part ``routes`` down until it is right again."""

    def __init__(self, path: Path, bound: BoundGateway, telemetry: Telemetry, *, every: float = LOOK_EVERY) -> None:
        self._path = path
        self._bound = bound
        self._every = every
        self._seen: object = None
        self._trouble = ""
        self._task: asyncio.Task[None] | None = None
        self._read = telemetry.metrics.counter(
            "gateway_routes_read_total", "Readings of the routes file that changed, by result.", ("result",)
        )

    def load(self) -> None:
        """Reads the routes and puts them in force.

        Raises:
            ConfigurationError: the file cannot be read, or does not describe routes.
            DefinitionError: it describes routes that cannot work.
        """
        self._seen = self._state()
        self._bound.replace(read_routes(self._path))

    async def start(self) -> None:
        """Looks at the file from now on."""
        self._task = asyncio.create_task(self._watch(), name="routes file")

    async def stop(self, timeout: float) -> None:  # noqa: ASYNC109  nothing is to be drained
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def probe(self) -> None:
        """Raises while the file cannot be used."""
        if self._trouble:
            raise ConnectionError(self._trouble)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._every)
            state = await asyncio.to_thread(self._state)
            if state != self._seen:
                self._seen = await self._at_rest(state)
                await self._reload()

    async def _at_rest(self, state: object) -> object:
        """The state of the file once nobody writes to it: the first half of one may be routes, too."""
        until = time.monotonic() + LONGEST_WRITE
        while time.monotonic() < until:
            await asyncio.sleep(min(AT_REST, self._every))
            before, state = state, await asyncio.to_thread(self._state)
            if state == before:
                break
        return state

    async def _reload(self) -> None:
        try:
            self._bound.replace(await asyncio.to_thread(read_routes, self._path))
        except Exception as error:  # noqa: BLE001  whatever stands there, the next file is to be read
            self._trouble = str(error) if isinstance(error, MicrokitError) else f"{self._path}: {error!r}"
            self._read("refused").inc()
            _log.error("the routes in force stay: %s", self._trouble)
        else:
            self._trouble = ""
            self._read("taken").inc()
            _log.info("%d routes of %s are in force", len(self._bound.routes), self._path)

    def _state(self) -> object:
        """What changes when the file does: also where it is a link that is turned, as Kubernetes mounts ConfigMaps."""
        try:
            found = self._path.stat()
        except OSError as error:
            return type(error).__name__
        return found.st_mtime_ns, found.st_size, found.st_ino
