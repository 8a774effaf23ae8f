"""Routes that are replaced while requests pass: none is lost, none sees half of the old and half of the new."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route as AppRoute

from microkit.errors import ConfigurationError, DefinitionError
from microkit.fronting import RoutesFile
from microkit.gateway import Route
from microkit.gateway.filters import RateLimit
from microkit.gateway.routes_file import to_data

pytestmark = pytest.mark.anyio


def named(name: str) -> Starlette:
    async def answer(_: Request) -> Response:
        await asyncio.sleep(0.002)
        return Response(name)

    return Starlette(routes=[AppRoute("/{path:path}", answer, methods=["GET", "POST"])])


async def test_no_request_is_lost_while_routes_are_replaced_again_and_again(start: Any) -> None:
    old, new = [Route("/a", "old")], [Route("/a", "new"), Route("/b", "new")]
    gateway = await start(old, {"old": named("old"), "new": named("new")})
    found: Counter[str] = Counter()
    over = False

    async def ask() -> None:
        while not over:
            async with gateway.client.get(f"{gateway.url}/a") as response:
                found[f"{response.status} {(await response.read()).decode()}"] += 1

    asking = [asyncio.create_task(ask()) for _ in range(16)]
    swaps = 0
    while sum(found.values()) < 1500:
        swaps += 1
        gateway.bound.replace(new if swaps % 2 else old)
        await asyncio.sleep(0.01)
    over = True
    await asyncio.gather(*asking)
    assert swaps > 10
    assert set(found) == {"200 old", "200 new"}, found


async def test_a_stream_that_began_by_the_old_routes_is_served_to_its_end(start: Any) -> None:
    go_on = asyncio.Event()

    async def stream(_: Request) -> Response:
        async def pieces() -> Any:
            yield b"first "
            await go_on.wait()
            yield b"last"

        return StreamingResponse(pieces())

    gateway = await start([Route("/a", "old")], {"old": Starlette(routes=[AppRoute("/a", stream)])})
    async with gateway.client.get(f"{gateway.url}/a") as response:
        assert await response.content.readany() == b"first "
        gateway.bound.replace([])
        async with gateway.client.get(f"{gateway.url}/a") as other:
            assert other.status == 404
        go_on.set()
        assert await response.content.read() == b"last"


async def test_limits_go_on_counting_over_a_reload_and_reports_go_on(start: Any) -> None:
    limited = [Route("/a", "old", filters=(RateLimit("2/h", by="address"),))]
    gateway = await start(limited, {"old": named("old")})
    statuses = []
    for _ in range(3):
        async with gateway.client.get(f"{gateway.url}/a") as response:
            statuses.append(response.status)
        gateway.bound.replace(limited)
    assert statuses == [200, 200, 429]
    report = gateway.bound.report()["routes"]["/a → old"]
    assert (report["requests"], report["statuses"], report["under_way"]) == (3, {"2xx": 2, "4xx": 1}, 0)


async def test_routes_that_cannot_work_change_nothing(start: Any) -> None:
    gateway = await start([Route("/a", "old")], {"old": named("old")})
    with pytest.raises(DefinitionError):
        gateway.bound.replace([Route("/a", "old"), Route("/a", "new")])
    async with gateway.client.get(f"{gateway.url}/a") as response:
        assert await response.read() == b"old"


async def test_a_routes_file_is_read_again_when_it_changes(start: Any, tmp_path: Path) -> None:
    gateway = await start([], {"old": named("old"), "new": named("new")})
    path = tmp_path / "routes.json"

    def write(text: bytes) -> None:
        fresh = tmp_path / "fresh"
        fresh.write_bytes(text)
        os.replace(fresh, path)

    async def until(expected: tuple[int, bytes]) -> None:
        async with asyncio.timeout(20):
            while True:
                async with gateway.client.get(f"{gateway.url}/a") as response:
                    if (response.status, await response.read()) == expected:
                        return
                await asyncio.sleep(0.02)

    file = RoutesFile(path, gateway.bound, gateway.telemetry, every=0.02)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        file.load()
    write(orjson.dumps(to_data([Route("/a", "old")])))
    file.load()
    await until((200, b"old"))
    await file.start()
    try:
        write(orjson.dumps(to_data([Route("/a", "new")])))
        await until((200, b"new"))
        await file.probe()
        write(b"[")
        async with asyncio.timeout(20):
            while not file._trouble:
                await asyncio.sleep(0.02)
        with pytest.raises(ConnectionError, match="cannot be read"):
            await file.probe()
        await until((200, b"new"))
        write(orjson.dumps(to_data([Route("/a", "old")])))
        await until((200, b"old"))
        await file.probe()
    finally:
        await file.stop(1)
    assert b'gateway_routes_read_total{result="refused"} 1.0' in gateway.telemetry.exposition()
