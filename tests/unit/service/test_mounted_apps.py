"""Applications of others that are mounted into a service: their lifespan and their faults."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route as StarletteRoute

from microkit import ANYONE
from tests.unit.service.notes import notes_service

pytestmark = pytest.mark.anyio


async def test_a_mounted_app_gets_its_lifespan_and_the_service_s_problems(settings: dict[str, object]) -> None:
    heard = []

    async def hello(request: Request) -> PlainTextResponse:
        return PlainTextResponse(f"hello {request.url.path}")

    async def broken(request: Request) -> PlainTextResponse:
        raise RuntimeError("a secret")

    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        heard.append("start")
        yield
        heard.append("stop")

    app = Starlette(
        routes=[StarletteRoute("/hello", hello), StarletteRoute("/broken", broken)],
        lifespan=asynccontextmanager(lifespan),
    )
    service = notes_service()
    service.mount("/old", app, allow=ANYONE)
    async with service.instance(settings) as instance:
        async with aiohttp.ClientSession() as session, session.get(f"{instance.url}/old/hello") as answer:
            assert (answer.status, await answer.text()) == (200, "hello /old/hello")
        async with aiohttp.ClientSession() as session, session.get(f"{instance.url}/old/broken") as answer:
            assert answer.status == 500
            assert "secret" not in await answer.text()
        assert heard == ["start"]

    assert heard == ["start", "stop"]


async def test_a_mounted_app_without_a_lifespan_is_served_as_it_is(settings: dict[str, object]) -> None:
    async def bare(scope: object, receive: object, send: object) -> None:
        assert isinstance(scope, dict)
        if scope["type"] != "http":
            raise RuntimeError("this app speaks HTTP only")
        await PlainTextResponse("bare")(scope, receive, send)  # type: ignore[arg-type]

    service = notes_service()
    service.mount("/bare", bare, allow=ANYONE)
    async with (
        service.instance(settings) as instance,
        aiohttp.ClientSession() as session,
        session.get(f"{instance.url}/bare") as answer,
    ):
        assert await answer.text() == "bare"
