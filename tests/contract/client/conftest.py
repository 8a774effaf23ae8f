"""A service to call: an ASGI app that records what comes and answers as told, over HTTP and in process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson
import pytest
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from microkit.client import open_session


@dataclass
class Received:
    method: str
    raw_path: str
    query: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Recorder:
    """The app. ``reply`` is a JSON value; ``raw`` bytes stand in its place."""

    status: int = 200
    reply: Any = None
    raw: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    received: list[Received] = field(default_factory=list)

    @property
    def last(self) -> Received:
        return self.received[-1]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        names = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.received.append(
            Received(scope["method"], scope["raw_path"].decode(), scope["query_string"].decode(), names, body)
        )
        payload = orjson.dumps(self.reply) if self.raw is None else self.raw
        kind = "application/problem+json" if self.status >= 400 else "application/json"
        headers = {"content-type": kind, "content-length": str(len(payload)), **self.headers}
        start = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": self.status, "headers": start})
        await send({"type": "http.response.body", "body": payload})


class Served:
    """An ASGI app behind a real server."""

    def __init__(self, app: ASGIApp) -> None:
        self._config = uvicorn.Config(app, host="127.0.0.1", port=0, lifespan="off", log_level="critical")
        self._server = uvicorn.Server(self._config)

    async def start(self) -> str:
        self._config.load()
        self._server.lifespan = self._config.lifespan_class(self._config)
        await self._server.startup()
        port = self._server.servers[0].sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{port}"

    async def stop(self) -> None:
        self._server.should_exit = True
        await self._server.shutdown()


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
async def recorder_url(recorder: Recorder) -> AsyncIterator[str]:
    served = Served(recorder)
    yield await served.start()
    await served.stop()


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with open_session() as opened:
        yield opened
