"""One server for a test's own handlers, a client of it, and the service's telemetry."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import orjson
from starlette.responses import Response

from microkit.contract import ANYONE
from microkit.web import InlineRoute, Server, WebApp

Handler = Callable[..., Awaitable[Any]]


class Running:
    """A server, a client of it, and the service's telemetry."""

    def __init__(self, app: WebApp, server: Server, client: aiohttp.ClientSession) -> None:
        self.app = app
        self.server = server
        self.client = client

    async def ask(self, method: str, path: str, **options: Any) -> tuple[int, Any, Any]:
        async with self.client.request(method, path, **options) as answer:
            body = await answer.read()
            found = orjson.loads(body) if "json" in answer.headers.get("content-type", "") else body
            return answer.status, found, answer.headers


Serve = Callable[..., Awaitable[Running]]


def at(handler: Handler, method: str = "GET", path: str = "/", **options: Any) -> InlineRoute:
    return InlineRoute(method, path, handler, ANYONE, **options)


def raising(error: BaseException) -> Handler:
    async def handler() -> None:
        raise error

    return handler


def answering(response: Response) -> Handler:
    async def handler() -> Response:
        return response

    return handler
