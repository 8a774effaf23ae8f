"""How the drill chooses a gateway."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from microkit.drill import Outgoing
from microkit.drill.front import Front
from microkit.web import Server

pytestmark = pytest.mark.anyio


@dataclass
class Gateway:
    name: str
    ready: int = 200
    asked: int = 0
    """How often whether it is ready."""
    may_answer: asyncio.Event = field(default_factory=asyncio.Event)

    def app(self) -> Starlette:
        return Starlette(routes=[Route("/health/ready", self.health), Route("/who", self.who)])

    async def health(self, _: Request) -> Response:
        self.asked += 1
        await self.may_answer.wait()
        return JSONResponse({}, self.ready)

    async def who(self, _: Request) -> Response:
        return JSONResponse(self.name)


async def test_one_that_was_not_ready_when_last_heard_of_is_asked_where_the_ready_one_has_gone() -> None:
    one, two = Gateway("one"), Gateway("two", ready=503)
    servers = [Server(each.app()) for each in (one, two)]
    for gateway, server in zip((one, two), servers, strict=True):
        gateway.may_answer.set()
        await server.start()
    who = Outgoing("GET", "/who")
    async with Front([server.url for server in servers], "") as front:
        while min(one.asked, two.asked) < 3:
            await asyncio.sleep(0.01)
        assert {(await front.send(who))[1] for _ in range(4)} == {"one"}
        two.may_answer.clear()  # it is about to be ready, and slow to say so
        await servers[0].stop(1)
        assert await front.send(who) == (200, "two")
        two.may_answer.set()
    await servers[1].stop(1)
