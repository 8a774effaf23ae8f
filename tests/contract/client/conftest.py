"""A service to call: an ASGI app that records what comes and answers as told, over HTTP and in process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson
import pytest
from starlette.types import Receive, Scope, Send

from microkit.client import open_session
from microkit.web import Server
from tests.contract.client.hosts import Fleet, Host, Make


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


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
async def recorder_url(recorder: Recorder) -> AsyncIterator[str]:
    server = Server(recorder)
    await server.start()
    yield server.url
    await server.stop(1)


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with open_session() as opened:
        yield opened


@pytest.fixture
async def fleet(session: aiohttp.ClientSession) -> AsyncIterator[Make]:
    async with AsyncExitStack() as stack:

        async def make(size: int, **settings: Any) -> Fleet:
            hosts = [Host(chr(ord("a") + number)) for number in range(size)]
            for host in hosts:
                await host.server.start()
                stack.push_async_callback(host.server.stop, 0.1)
            return Fleet(hosts, session, settings)

        yield make
