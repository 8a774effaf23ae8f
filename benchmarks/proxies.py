"""The reverse proxies that ``benchmarks.gateway`` compares, each run as a process of its own.

    python -m benchmarks.proxies NAME UPSTREAM_PORT

``gateway`` is microkit's with everything on: route match, JWT (EdDSA) check, rate limit per user, trace at 100 %, RED
metrics, access line and streaming. ``routes_10`` and ``routes_1000`` are the same with that many routes, each asked for
in turn. The Starlette ones are what the documentation of Starlette, aiohttp and httpx leads to: head and query passed
on, both bodies streamed, hop-by-hop headers dropped, and nothing else. ``starlette_httpx`` has httpx's own limits, by
which 20 connections are kept; the clients of ``starlette_httpx_pool`` and ``starlette_aiohttp`` may keep one for each
of the load's. All, the peers too, have the garbage collector set as ``microkit up`` and ``microkit run`` do it: what
start-up made is taken out, and new objects may gather.
"""

# ruff: noqa: PLC0415  a process loads what it measures and nothing else

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from typing import Any

import orjson
import uvloop

App = Callable[..., Awaitable[None]]

ISSUER, AUDIENCE, USER = "https://user.example", "bench", "6f1c0d1e-9a3b-4c55-8c2a-5d0f4b1e7a90"
_HOP = frozenset({b"host", b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade"})
_MOST = 256
_BODY = frozenset({"content-length", "transfer-encoding"})
NAMES = ("gateway", "routes_10", "routes_1000", "starlette_aiohttp", "starlette_httpx", "starlette_httpx_pool")


async def microkit(routes: int, upstream: int, stack: AsyncExitStack) -> tuple[int, str]:
    """Serves; returns the port, and a token that is let in."""
    from microkit.auth import Issuer, SigningKey, Verifier
    from microkit.auth.key_source import FixedKeys
    from microkit.contract import ANYONE, SIGNED_IN
    from microkit.discovery.static import StaticResolver
    from microkit.gateway import Gateway, Route
    from microkit.gateway.filters import RateLimit
    from microkit.telemetry import Telemetry
    from microkit.telemetry.logs import configure
    from microkit.web import Mount, Server, Surface, WebApp

    devnull = stack.enter_context(open(os.devnull, "w"))  # noqa: ASYNC230, SIM115  as standard output would be
    configure(devnull, format="json", level="INFO")
    telemetry = Telemetry("gateway")
    issuer = Issuer(ISSUER, audience=AUDIENCE, keys=[SigningKey.generate()])
    verifier = Verifier({ISSUER: FixedKeys(issuer.jwks())}, audience=AUDIENCE)
    paths = ["/bills"] if routes == 1 else [f"/api/v{number % 7}/resource-{number}/items" for number in range(routes)]
    limit = RateLimit("1000000/s", by="user")
    bound = await Gateway([Route(path, service="billing", allow=SIGNED_IN, filters=(limit,)) for path in paths]).bind(
        telemetry=telemetry,
        verify=verifier.verify,
        resolver=StaticResolver({"billing": [f"http://127.0.0.1:{upstream}"]}),
    )
    stack.push_async_callback(bound.close)
    app = WebApp(Surface("gateway", mounts=[Mount("/", bound, ANYONE)]), telemetry=telemetry)
    server = Server(app)
    await server.start()
    stack.push_async_callback(server.stop)
    return server.port, issuer.sign(USER, roles=["member"]).value


def _passed(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    return [(name, value) for name, value in headers if name.lower() not in _HOP]


def starlette_aiohttp(upstream: int, session: Any) -> App:
    from starlette.applications import Starlette
    from starlette.background import BackgroundTask
    from starlette.requests import Request
    from starlette.responses import StreamingResponse
    from starlette.routing import Route
    from yarl import URL

    async def pass_on(request: Request) -> StreamingResponse:
        target = f"http://127.0.0.1:{upstream}{request.url.path}"
        answer = await session.request(
            request.method,
            URL(f"{target}?{request.url.query}" if request.url.query else target, encoded=True),
            headers=[(name.decode(), value.decode()) for name, value in _passed(request.headers.raw)],
            data=request.stream() if _BODY.intersection(request.headers.keys()) else None,
            allow_redirects=False,
        )

        async def closed() -> None:
            answer.release()

        response = StreamingResponse(answer.content.iter_any(), answer.status, background=BackgroundTask(closed))
        response.raw_headers = [(name.lower(), value) for name, value in _passed(answer.raw_headers)]
        return response

    return Starlette(routes=[Route("/{path:path}", pass_on, methods=["GET", "POST"])])


def starlette_httpx(upstream: int, client: Any) -> App:
    from starlette.applications import Starlette
    from starlette.background import BackgroundTask
    from starlette.requests import Request
    from starlette.responses import StreamingResponse
    from starlette.routing import Route

    async def pass_on(request: Request) -> StreamingResponse:
        target = f"http://127.0.0.1:{upstream}{request.url.path}"
        sent = client.build_request(
            request.method,
            f"{target}?{request.url.query}" if request.url.query else target,
            headers=_passed(request.headers.raw),
            content=request.stream() if _BODY.intersection(request.headers.keys()) else None,
        )
        answer = await client.send(sent, stream=True)
        response = StreamingResponse(answer.aiter_raw(), answer.status_code, background=BackgroundTask(answer.aclose))
        response.raw_headers = [(name.lower(), value) for name, value in _passed(answer.headers.raw)]
        return response

    return Starlette(routes=[Route("/{path:path}", pass_on, methods=["GET", "POST"])])


async def peer(name: str, upstream: int, stack: AsyncExitStack) -> tuple[int, str]:
    import uvicorn

    if name == "starlette_aiohttp":
        import aiohttp

        session = await stack.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=_MOST), auto_decompress=False)
        )
        app = starlette_aiohttp(upstream, session)
    else:
        import httpx

        pool = httpx.Limits(max_connections=_MOST, max_keepalive_connections=_MOST)
        client = httpx.AsyncClient(limits=pool) if name == "starlette_httpx_pool" else httpx.AsyncClient()
        app = starlette_httpx(upstream, await stack.enter_async_context(client))
    server = uvicorn.Server(
        uvicorn.Config(app, port=0, http="httptools", loop="none", log_config=None, access_log=False, ws="none")
    )
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110  it tells nobody
        await asyncio.sleep(0.01)

    async def stop() -> None:
        server.should_exit = True
        await serving

    stack.push_async_callback(stop)
    return server.servers[0].sockets[0].getsockname()[1], "t" * 300


async def serve(name: str, upstream: int) -> None:
    """Serves on a free port until its standard input ends; the first line it prints holds the port and a token."""
    from microkit.cli.steady import settle

    async with AsyncExitStack() as stack:
        routes = {"gateway": 1, "routes_10": 10, "routes_1000": 1000}.get(name)
        start = peer(name, upstream, stack) if routes is None else microkit(routes, upstream, stack)
        port, token = await start
        settle()
        print(orjson.dumps({"port": port, "token": token}).decode(), flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("upstream", type=int)
    options = parser.parse_args()
    uvloop.run(serve(options.name, options.upstream))


if __name__ == "__main__":  # pragma: no cover
    main()
