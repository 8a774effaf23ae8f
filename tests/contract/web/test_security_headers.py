"""The headers on answers that a browser, or a cache on the way, decides by."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel
from starlette.responses import JSONResponse, PlainTextResponse, Response

from microkit.auth.principal import Principal
from microkit.contract import ANYONE
from microkit.telemetry import Telemetry
from microkit.web import InlineRoute, Server, Surface, WebApp

pytestmark = pytest.mark.anyio

MINE = "Authorization: Bearer mine"


class Told(BaseModel):
    number: int


async def told() -> Told:
    return Told(number=1)


async def responds() -> Response:
    return PlainTextResponse("<b>text</b>")


async def cached() -> Response:
    return JSONResponse([1], headers={"Cache-Control": "public, max-age=300"})


async def nothing() -> None: ...


async def verify(token: str) -> Principal:
    return Principal("me", frozenset({"member"}), token)


@pytest.fixture
async def ask(anyio_backend: str, http: Any) -> Any:
    routes = [
        InlineRoute("GET", "/open", told, ANYONE),
        InlineRoute("GET", "/mine", told, "member"),
        InlineRoute("POST", "/log-in", told, ANYONE),
        InlineRoute("GET", "/text", responds, "member"),
        InlineRoute("GET", "/keys", cached, "member"),
        InlineRoute("DELETE", "/mine", nothing, "member", status=204),
    ]
    server = Server(WebApp(Surface("told", routes=routes, asyncapi=dict), telemetry=Telemetry("told"), verify=verify))
    await server.start()
    wire = http.wire_to(server)

    async def ask(method: str, path: str, *headers: str) -> dict[str, str]:
        answer = await wire(http.request(method, path, *headers, body=b"" if method == "POST" else None))
        assert "set-cookie" not in answer.headers, "there are no sessions by cookie, so none to be ridden"
        assert "server" not in answer.headers
        found: dict[str, str] = answer.headers
        return found

    yield ask
    await server.stop(5)


@pytest.mark.parametrize(
    ("method", "path", "kept"),
    [
        ("GET", "/open", None),
        ("GET", "/mine", "no-store"),
        ("POST", "/log-in", "no-store"),
        ("GET", "/text", "no-store"),
        ("GET", "/keys", "public, max-age=300"),
        ("DELETE", "/mine", "no-store"),
    ],
)
async def test_what_is_somebodys_is_kept_by_no_cache_unless_the_handler_says_so(
    method: str, path: str, kept: str | None, ask: Any
) -> None:
    headers = await ask(method, path, MINE)

    assert headers.get("cache-control") == kept
    assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", ["/mine", "/not-there", "/open?more=1", "/a\\b", "/" + 9000 * "x"])
async def test_a_refusal_is_kept_by_no_cache_and_is_what_it_says(path: str, ask: Any) -> None:
    headers = await ask("GET", path)

    assert headers["content-type"] == "application/problem+json"
    assert headers["cache-control"] == "no-store"
    assert headers["x-content-type-options"] == "nosniff"


async def test_the_page_of_operations_runs_nothing_and_stands_in_no_frame(ask: Any) -> None:
    headers = await ask("GET", "/docs")

    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'")
    assert "frame-ancestors 'none'" in policy
    assert "script" not in policy
    assert headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize(
    "path",
    [
        "/docs",
        "/openapi.json",
        "/asyncapi.json",
        "/metrics",
        "/health",
        "/health/live",
        "/health/ready",
        "/health/startup",
    ],
)
async def test_what_every_service_serves_is_what_it_says(path: str, ask: Any) -> None:
    assert (await ask("GET", path))["x-content-type-options"] == "nosniff"
