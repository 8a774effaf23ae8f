"""The console's HTTP API: what ``microkit up`` serves on the loopback for the terminal and the browser."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import orjson
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from microkit.console import desk_api, observe
from microkit.console.desk import LocalDesk
from microkit.console.observe import Observed


def api(system: Observed, *more: Route) -> Starlette:
    """The ASGI app, with ``more`` routes beside its own.

    It has no log-in, so it must listen on the loopback only, and answers to no other host name: a web page that points
    its own name at 127.0.0.1 reads nothing.
    """

    async def services(request: Request) -> Any:
        return {"system": system.name, "services": await system.services()}

    async def traces(request: Request) -> Any:
        return {"traces": observe.recent_traces(system)}

    async def trace(request: Request) -> Any:
        found = observe.trace(system, request.path_params["trace_id"])
        return found if found["spans"] else None

    async def events(request: Request) -> Any:
        return {"events": await observe.events(system, request.query_params.get("trace"))}

    async def sagas(request: Request) -> Any:
        return {"sagas": await observe.sagas(system, request.query_params.get("trace"))}

    async def saga(request: Request) -> Any:
        try:
            return await observe.saga(system, UUID(request.path_params["saga_id"]))
        except ValueError:
            return None

    return Starlette(
        routes=[
            Route("/services", _json(services)),
            Route("/traces", _json(traces)),
            Route("/traces/{trace_id}", _json(trace)),
            Route("/events", _json(events)),
            Route("/sagas", _json(sagas)),
            Route("/sagas/{saga_id}", _json(saga)),
            *desk_api.routes(lambda: LocalDesk(system.posts)),
            *more,
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "[::1]"])],
    )


def _json(handler: Callable[[Request], Awaitable[Any]]) -> Callable[[Request], Awaitable[Response]]:
    async def respond(request: Request) -> Response:
        found = await handler(request)
        if found is None:
            document = {"type": "urn:problem:not-found", "title": "Not Found", "status": 404}
            return Response(orjson.dumps(document), 404, media_type="application/problem+json")
        return Response(orjson.dumps(found, default=str), media_type="application/json")

    return respond
