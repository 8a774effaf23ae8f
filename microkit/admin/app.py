"""The admin endpoints as an ASGI app.

It has no log-in. On the loopback it answers to the loopback's names only, so that a web page that points its own name
at 127.0.0.1 reads nothing; and what changes something takes JSON, which a page of another origin cannot send without
asking first, and nothing here answers that.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from microkit.admin import endpoints
from microkit.admin.answers import answered, guard, problem
from microkit.admin.endpoints import Document, Seen
from microkit.parts import Parts
from microkit.telemetry.levels import LEVELS, level_of, set_level
from microkit.telemetry.metrics import CONTENT_TYPE

_LONGEST_BODY: Final = 1000

Endpoint = Callable[[Request], Awaitable[Response]]
WhenOpen = Callable[[Request, Parts], Awaitable[Response]]


def admin_app(seen: Seen, *, loopback: bool) -> Starlette:
    """The endpoints of one instance; ``loopback`` is whether they are reached from this machine only."""
    admin = _Admin(seen)
    return Starlette(
        routes=[
            Route("/health", admin.health),
            Route("/health/live", admin.live),
            Route("/health/ready", admin.ready),
            Route("/info", admin.info),
            Route("/metrics", admin.when_open(_metrics)),
            Route("/log-level", admin.when_open(_read_level), methods=["GET"]),
            Route("/log-level", admin.when_open(_change_level), methods=["PUT"]),
            Route("/pool", admin.when_open(_told(endpoints.pool, "pool"))),
            Route("/breakers", admin.when_open(_told(endpoints.breakers, "breakers"))),
            Route("/endpoints", admin.when_open(_told(endpoints.endpoints, "endpoints"))),
            Route("/sagas", admin.when_open(_told(endpoints.sagas, "sagas"))),
            Route("/outbox", admin.when_open(_told(endpoints.outbox, "outbox"))),
            Route("/consumers", admin.when_open(_told(endpoints.consumers, "consumers"))),
        ],
        middleware=guard(loopback=loopback),
    )


class _Admin:
    """What can be told while the instance is still opening what it owns, and the rest when it is open."""

    def __init__(self, seen: Seen) -> None:
        self._seen = seen

    async def health(self, _: Request) -> Response:
        document = await endpoints.health(self._seen)
        return answered(document, 503 if document["status"] == "down" else 200)

    async def live(self, _: Request) -> Response:
        return _status(await self._seen.health.live(), "up", "down")

    async def ready(self, _: Request) -> Response:
        return _status(await self._seen.health.ready(), "ready", "not ready")

    async def info(self, _: Request) -> Response:
        return answered(endpoints.info(self._seen))

    def when_open(self, answer: WhenOpen) -> Endpoint:
        async def respond(request: Request) -> Response:
            parts = self._seen.parts_now
            if parts is None:
                return problem(503, "Not open", f"the service is {self._seen.health.state}")
            try:
                return await answer(request, parts)
            except Exception as error:  # noqa: BLE001  as with the database away: what else there is can still be told
                return problem(503, "It cannot be told", f"{type(error).__name__}: {error}"[:300])

        return respond


async def _metrics(_: Request, parts: Parts) -> Response:
    return Response(parts.telemetry.exposition(), headers={"content-type": CONTENT_TYPE})


async def _read_level(_: Request, parts: Parts) -> Response:
    return answered({"level": level_of(parts.telemetry)})


async def _change_level(request: Request, parts: Parts) -> Response:
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        return problem(415, "Unsupported Media Type", 'send application/json, such as {"level": "DEBUG"}')
    wanted = await _level_in(request)
    if wanted is None:
        return problem(400, "Bad Request", f'say {{"level": "DEBUG"}}, or one of {", ".join(LEVELS)}')
    before = level_of(parts.telemetry)
    set_level(parts.telemetry, wanted)
    parts.telemetry.logger.warning("the log level is %s, it was %s", wanted, before)
    return answered({"level": wanted, "before": before})


def _told(document_of: Callable[[Parts], Awaitable[Document | None]], what: str) -> WhenOpen:
    async def answer(_: Request, parts: Parts) -> Response:
        document = await document_of(parts)
        return problem(404, "Not Found", f"this service has no {what}") if document is None else answered(document)

    return answer


async def _level_in(request: Request) -> Any:
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > _LONGEST_BODY:
            return None
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    wanted = document.get("level") if isinstance(document, dict) else None
    return wanted.upper() if isinstance(wanted, str) and wanted.upper() in LEVELS else None


def _status(good: bool, yes: str, no: str) -> Response:
    return answered({"status": yes if good else no}, 200 if good else 503)
