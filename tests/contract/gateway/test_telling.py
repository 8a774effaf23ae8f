"""What the gateway tells of a request, and what of the services behind it the client gets to see."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route as StarletteRoute

from microkit.gateway import Route

pytestmark = pytest.mark.anyio

MISSING = {"type": "urn:problem:not-found", "title": "Not Found", "status": 404, "instance": "/bills/7"}


async def missing(request: Request) -> Response:
    return JSONResponse(MISSING, 404, media_type="application/problem+json")


async def broken(request: Request) -> Response:
    return Response(b"{", 500, media_type="application/problem+json")


BILLS = Starlette(routes=[StarletteRoute("/bills/7", missing), StarletteRoute("/bills/8", broken)])
ROUTES = [Route("/api/bills", "billing", strip_prefix="/api", allow="member")]
ALICE = {"Authorization": "Bearer alice"}


async def test_a_problem_names_the_path_that_the_client_asked_for(start: Any) -> None:
    gateway = await start(ROUTES, {"billing": BILLS})

    async with gateway.client.get(f"{gateway.url}/api/bills/7", headers=ALICE) as response:
        assert await response.json(content_type=None) == {**MISSING, "instance": "/api/bills/7"}
    async with gateway.client.get(f"{gateway.url}/api/bills/8", headers=ALICE) as response:
        assert (response.status, await response.read()) == (500, b"{")


async def test_metric_span_and_access_line_name_the_route_and_the_user(
    start: Any, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = await start(ROUTES, {"billing": BILLS})

    async with gateway.client.get(f"{gateway.url}/api/bills/7", headers=ALICE):
        pass

    assert b'http_route="/api/bills"' in gateway.telemetry.exposition()
    spans = [span for span in gateway.ring.recent(10) if span.kind == "server"]
    assert [span.attributes["http.route"] for span in spans] == ["/api/bills"]
    lines = [record for record in caplog.records if record.name == "access"]
    assert [getattr(line, "user", None) for line in lines] == ["user-alice"]


async def test_services_do_not_come_through_the_gateway(start: Any) -> None:
    open_to_all = [Route("/api/bills", "billing", strip_prefix="/api")]
    gateway = await start(open_to_all, {"billing": BILLS})

    async with gateway.client.get(
        f"{gateway.url}/api/bills/7", headers={"Authorization": "Bearer payment"}
    ) as response:
        assert response.status == 403
