"""Problem documents: what they hold, and the headers that go with them."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from starlette.responses import Response

from microkit.errors import Conflict, RemoteProblem, Unavailable
from tests.contract.web.serving import Serve, answering, at, raising

pytestmark = pytest.mark.anyio


async def test_what_a_problem_may_hold_beside_plain_json_is_written_as_pydantic_writes_it(serve: Serve) -> None:
    error = Conflict(extensions={"due": Decimal("1.50"), "at": datetime(2026, 1, 31, tzinfo=UTC), "ids": {7}})
    status, problem, _ = await (await serve(at(raising(error)))).ask("GET", "/")
    assert (status, problem["due"], problem["ids"]) == (409, "1.50", [7])
    assert problem["at"].startswith("2026-01-31T00:00:00")


async def test_headers_about_the_body_are_the_servers_and_an_empty_answer_has_none(serve: Serve, http: Any) -> None:
    lies = {"Content-Length": "5", "Transfer-Encoding": "chunked"}
    running = await serve(
        at(raising(Conflict("Too late", headers=lies)), path="/problem"),
        at(answering(Response("whole", headers=lies)), path="/response"),
        at(answering(Response("not to be sent", status_code=204)), path="/empty"),
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", running.server.port)
    for path, status in (("/problem", 409), ("/response", 200), ("/empty", 204), ("/problem", 409)):
        writer.write(http.request("GET", path))
        answer = await http.read_answer(reader)
        assert answer.status == status
        assert "transfer-encoding" not in answer.headers
        assert ("content-length" in answer.headers) is (status != 204)
    writer.close()


async def test_a_problem_keeps_its_headers_and_members(serve: Serve) -> None:
    async def handler() -> None:
        raise Conflict("Too late", extensions={"since": "noon", "status": 200}, headers={"Retry-After": "3"})

    status, problem, headers = await (await serve(at(handler, path="/a b"))).ask("GET", "/a%20b")
    assert status == 409
    assert problem == {
        "type": "urn:problem:conflict",
        "title": "Conflict",
        "status": 409,
        "detail": "Too late",
        "since": "noon",
        "instance": "/a%20b",
        "trace_id": problem["trace_id"],
    }
    assert headers["retry-after"] == "3"
    assert headers["cache-control"] == "no-store"


async def test_a_neighbours_problem_that_nobody_handled_is_a_502(serve: Serve) -> None:
    async def handler() -> None:
        raise RemoteProblem("ledger", "Ledger.read", 404, {"detail": "internal matter"})

    status, problem, _ = await (await serve(at(handler))).ask("GET", "/")
    assert status == 502
    assert problem["service"] == "ledger"
    assert "internal matter" not in str(problem)


async def test_a_service_that_is_away_says_when_to_come_back(serve: Serve) -> None:
    async def away() -> None:
        raise Unavailable

    _, _, headers = await (await serve(at(away))).ask("GET", "/")
    assert headers["retry-after"] == "1"
