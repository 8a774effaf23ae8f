"""The time that a request has: its operation's, its caller's, and that for its body to come."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.requests import Request

from microkit import context
from microkit.web import Limits
from tests.contract.web.serving import Serve, at

pytestmark = pytest.mark.anyio


async def test_a_request_ends_with_its_timeout(serve: Serve) -> None:
    cancelled = asyncio.Event()

    async def handler() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            cancelled.set()

    running = await serve(at(handler, timeout=0.05))
    status, problem, _ = await running.ask("GET", "/")
    assert status == 504
    assert problem["type"] == "urn:problem:deadline-exceeded"
    assert cancelled.is_set()


async def test_a_caller_that_waits_less_long_makes_the_deadline_shorter(serve: Serve) -> None:
    async def handler() -> float:
        return context.remaining() or 0.0

    running = await serve(at(handler, timeout=5.0))
    for given, bound in ((None, 5.0), ("900000", 5.0), ("2000", 2.0), ("nonsense", 5.0), ("-1", 5.0)):
        headers = {} if given is None else {"Request-Timeout-Ms": given}
        status, left, _ = await running.ask("GET", "/", headers=headers)
        assert status == 200
        assert bound - 2 < left <= bound
    status, _, _ = await running.ask("GET", "/", headers={"Request-Timeout-Ms": "0"})
    assert status == 504


async def test_a_handler_that_was_cancelled_from_within_is_no_timeout(serve: Serve) -> None:
    async def handler() -> str:
        task = asyncio.create_task(asyncio.sleep(60))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return "went on"

    status, body, _ = await (await serve(at(handler))).ask("GET", "/")
    assert (status, body) == (200, "went on")


@pytest.mark.parametrize("sent", [b"", b'{"na'])
@pytest.mark.parametrize("path", ["/json", "/request", "/unread"])
async def test_a_body_that_stops_coming_is_the_clients_408_and_not_a_504(
    sent: bytes, path: str, serve: Serve, http: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def json(body: dict[str, int]) -> None: ...

    async def request(request: Request) -> int:
        return len(await request.body())

    async def unread() -> None: ...

    routes = (at(json, "POST", "/json"), at(request, "POST", "/request"), at(unread, "POST", "/unread"))
    running = await serve(*routes, limits=Limits(timeout=0.05))
    head = http.request("POST", path, "Content-Type: application/json", "Content-Length: 10")
    answer = await http.wire_to(running.server)(head, sent)
    assert answer.status == 408
    assert answer.closed
    assert answer.json["type"] == "urn:problem:request-timeout"
    assert len(answer.json["trace_id"]) == 32
    assert "WARNING" not in caplog.text
    assert "ERROR" not in caplog.text


async def test_a_handler_that_is_slow_after_its_body_came_is_a_504(serve: Serve) -> None:
    async def handler(request: Request) -> None:
        await request.body()
        await request.receive()  # only that the client left can still come

    async def reads_first(body: bytes) -> None:
        await asyncio.sleep(60)

    running = await serve(at(handler, "POST"), at(reads_first, "POST", "/first"), limits=Limits(timeout=0.05))
    for path in ("/", "/first"):
        status, problem, headers = await running.ask("POST", path, data=b"whole")
        assert (status, problem["type"]) == (504, "urn:problem:deadline-exceeded")
        assert "connection" not in headers
