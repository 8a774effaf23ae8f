"""Calls over HTTP to servers that fail in every way a server can."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest

from microkit.client import HttpCaller, Upstream, connect
from microkit.context import WorkContext, working
from microkit.contract import Contract, get, post
from microkit.discovery.port import Endpoint
from microkit.errors import BadGateway, DeadlineExceeded, Problem, RemoteProblem, Unavailable
from microkit.settings.clients import ClientSettings
from microkit.telemetry import Telemetry, TraceRing

pytestmark = pytest.mark.anyio


class Missing(Problem, status=404): ...


class Echo(Contract, service="echo", allow="member"):
    @get("/text/{name}", raises=(Missing,))
    async def read(self, name: str) -> list[str]: ...

    @post("/text")
    async def write(self, body: str) -> list[str]: ...

    @get("/hurried", timeout=0.2)
    async def hurried(self) -> list[str]: ...


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Raw:
    """A TCP server whose every byte is the test's. ``serve`` handles what follows the head of each request."""

    def __init__(self) -> None:
        self.connections = 0
        self.requests: list[bytes] = []
        self.closed = asyncio.Event()
        self.serve: Serve = self.answer(b'HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n["a"]')
        self.url = ""

    @staticmethod
    def answer(data: bytes, *, close: bool = False) -> Serve:
        async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(data)
            await writer.drain()
            if close:
                writer.close()

        return serve

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                self.requests.append(head)
                await self.serve(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.closed.set()
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


@pytest.fixture
async def raw() -> AsyncIterator[Raw]:
    made = Raw()
    server = await asyncio.start_server(made.handle, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield made
    server.close()
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        if task.get_coro().__qualname__ == "Raw.handle":  # type: ignore[union-attr]  # a coroutine, started by the server
            task.cancel()
            await asyncio.wait([task])


class Fixed:
    def __init__(self, *urls: str) -> None:
        self.urls = urls

    async def resolve(self, _: str) -> list[Endpoint]:
        if not self.urls:
            raise Unavailable("No instance of 'echo' is known")
        return [Endpoint(url) for url in self.urls]


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry("test", ring=TraceRing())


@pytest.fixture
def call(session: aiohttp.ClientSession, telemetry: Telemetry) -> Callable[..., Echo]:
    def call(*urls: str, **options: Any) -> Echo:
        upstream = Upstream("echo", resolver=Fixed(*urls), telemetry=telemetry)
        timeout = options.pop("timeout", 10.0)
        # One attempt: what several are for stands in test_retries.py.
        clients = {"echo": ClientSettings(**{"attempts": 1, **options})}
        caller = HttpCaller(upstream, session=session, telemetry=telemetry, timeout=timeout, clients=clients)
        return connect(Echo, caller)

    return call


Call = Callable[..., Echo]


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def test_a_refused_connection_is_unavailable(call: Call) -> None:
    with pytest.raises(Unavailable, match="echo cannot be reached"):
        await call(f"http://127.0.0.1:{unused_port()}").read("x")


async def test_an_unknown_service_is_unavailable(call: Call) -> None:
    with pytest.raises(Unavailable, match="No instance"):
        await call().read("x")


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n[",
        b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n["a"',
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nabcd",
    ],
    ids=[
        "none",
        "half-head",
        "half-body",
        "half-chunk",
        "bad-chunk",
        "bad-length",
        "not-http",
        "huge-header",
        "not-gzip",
    ],
)
@pytest.mark.parametrize("method", ["read", "write"])
async def test_an_answer_that_breaks_off_is_a_bad_gateway(raw: Raw, call: Call, answer: bytes, method: str) -> None:
    raw.serve = Raw.answer(answer, close=True)
    with pytest.raises(BadGateway, match="echo broke off its answer"):
        await getattr(call(raw.url), method)("x")


async def test_a_reset_connection_is_a_bad_gateway(raw: Raw, call: Call) -> None:
    async def reset(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raw_socket = writer.get_extra_info("socket")
        raw_socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        writer.transport.abort()

    raw.serve = reset
    with pytest.raises(BadGateway):
        await call(raw.url).write("x")
    assert len(raw.requests) == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5000000\r\n\r\n" + b"[" * 200_000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        + b"2710\r\n"
        + b" " * 10_000
        + b"\r\n"
        + b"2710\r\n" * 1,
        b"HTTP/1.1 200 OK\r\n\r\n" + b" " * 200_000,
        b"HTTP/1.1 500 No\r\n\r\n" + b" " * 200_000,
    ],
    ids=["announced", "chunked", "until-close", "problem"],
)
async def test_an_answer_that_is_too_big_is_given_up_early(raw: Raw, call: Call, answer: bytes) -> None:
    raw.serve = Raw.answer(answer)
    with pytest.raises(BadGateway, match="more than 5000 bytes"):
        await call(raw.url, answer_limit=5000).read("x")
    async with asyncio.timeout(60):
        await raw.closed.wait()  # the connection is not kept for the next request


async def test_a_packed_answer_counts_unpacked(raw: Raw, call: Call) -> None:
    bomb = gzip.compress(b" " * 30_000_000)
    assert len(bomb) < 100_000
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(bomb)}\r\n\r\n".encode()
    raw.serve = Raw.answer(head + bomb)
    with pytest.raises(BadGateway, match="more than 1000000 bytes"):
        await call(raw.url, answer_limit=1_000_000).read("x")
    honest = gzip.compress(b'["a"]')
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(honest)}\r\n\r\n".encode()
    raw.serve = Raw.answer(head + honest)
    assert await call(raw.url, answer_limit=1_000_000).read("x") == ["a"]


async def never(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    await reader.read()  # until the client leaves


async def drip(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    while True:
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("serve", [never, drip])
async def test_the_operations_timeout_ends_a_slow_call(raw: Raw, call: Call, serve: Serve) -> None:
    raw.serve = serve
    with pytest.raises(DeadlineExceeded, match=r"echo did not answer Echo\.hurried within 0\.2 s"):
        await call(raw.url).hurried()
    async with asyncio.timeout(60):
        await raw.closed.wait()


@pytest.mark.parametrize("serve", [never, drip])
async def test_no_call_waits_longer_than_its_caller(raw: Raw, call: Call, serve: Serve) -> None:
    raw.serve = serve
    with working(WorkContext(deadline=time.monotonic() + 0.2)), pytest.raises(DeadlineExceeded):
        await call(raw.url, timeout=60.0).read("x")


async def test_resolving_counts_against_the_deadline(
    session: aiohttp.ClientSession, telemetry: Telemetry, raw: Raw
) -> None:
    class Stuck(Fixed):
        async def resolve(self, _: str) -> list[Endpoint]:
            await asyncio.Event().wait()
            raise AssertionError

    upstream = Upstream("echo", resolver=Stuck(raw.url), telemetry=telemetry)
    caller = HttpCaller(upstream, session=session, telemetry=telemetry)
    with pytest.raises(DeadlineExceeded):
        await connect(Echo, caller).hurried()


async def test_a_cancelled_call_gives_its_connection_up(raw: Raw, call: Call) -> None:
    raw.serve = never
    echo = call(raw.url)
    waiting = asyncio.ensure_future(echo.read("x"))
    async with asyncio.timeout(60):
        while not raw.requests:
            await asyncio.sleep(0.001)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await raw.closed.wait()
    raw.serve = Raw.answer(b'HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n["b"]')
    assert await echo.read("x") == ["b"]


async def test_connections_are_used_again(raw: Raw, call: Call) -> None:
    echo = call(raw.url)
    for _ in range(10):
        assert await echo.read("x") == ["a"]
    assert raw.connections == 1


async def test_a_problem_does_not_cost_the_connection(raw: Raw, call: Call) -> None:
    echo = call(raw.url)
    body = b'{"type": "urn:problem:missing", "status": 404}'
    raw.serve = Raw.answer(b"HTTP/1.1 404 No\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    for _ in range(3):
        with pytest.raises(Missing):
            await echo.read("x")
    assert raw.connections == 1


async def test_an_unsafe_call_is_never_sent_twice(raw: Raw, call: Call) -> None:
    """Where its key is not trusted. Not even where a kept connection turns out to be closed: nobody knows what the
    other side has done."""
    echo = call(raw.url, attempts=3, retry_unsafe=False)
    assert await echo.read("x") == ["a"]
    raw.serve = Raw.answer(b"", close=True)
    with pytest.raises(BadGateway):
        await echo.write("x")
    assert [request.split()[0] for request in raw.requests] == [b"GET", b"POST"]


async def test_every_instance_is_called(raw: Raw, call: Call) -> None:
    second = Raw()
    server = await asyncio.start_server(second.handle, "127.0.0.1", 0)
    second.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    second.serve = Raw.answer(b'HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\n["b"]', close=True)
    echo = call(raw.url, second.url)
    answers = await asyncio.gather(*(echo.read("x") for _ in range(20)))
    assert {answer[0] for answer in answers} == {"a", "b"}
    server.close()
    await server.wait_closed()


async def test_a_redirect_is_not_followed(raw: Raw, call: Call) -> None:
    raw.serve = Raw.answer(
        b"HTTP/1.1 307 Elsewhere\r\nLocation: http://169.254.169.254/latest/meta-data\r\nContent-Length: 0\r\n\r\n"
    )
    with pytest.raises(RemoteProblem) as caught:
        await call(raw.url).read("x")
    assert caught.value.status == 307


async def test_cookies_are_not_kept(raw: Raw, call: Call) -> None:
    raw.serve = Raw.answer(b'HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nContent-Length: 5\r\n\r\n["a"]')
    echo = call(raw.url.replace("127.0.0.1", "localhost"))  # aiohttp's own jar keeps none of an IP address
    await echo.read("x")
    await echo.read("x")
    assert b"cookie" not in raw.requests[1].lower()


async def test_a_proxy_of_the_environment_is_not_used(raw: Raw, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{unused_port()}")
    assert await call(raw.url).read("x") == ["a"]


async def test_a_call_leaves_a_span_and_a_duration(raw: Raw, call: Call, telemetry: Telemetry) -> None:
    await call(raw.url).read("x")
    assert telemetry.ring is not None
    (span,) = telemetry.ring.recent(10)
    assert span.name == "GET /text/{name}"
    assert span.attributes["http.response.status_code"] == 200
    assert span.attributes["peer.service"] == "echo"
    traceparent = next(line for line in raw.requests[0].split(b"\r\n") if line.lower().startswith(b"traceparent"))
    assert span.kind == "client"
    assert span.span_id.encode() in traceparent
    assert b"http_client_request_duration_seconds_count{" in telemetry.exposition()


@pytest.mark.parametrize(
    ("answer", "error_type"),
    [(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n", "500"), (b"", "BadGateway")],
)
async def test_a_failed_call_is_seen_in_its_span_and_in_the_metrics(
    raw: Raw, call: Call, telemetry: Telemetry, answer: bytes, error_type: str
) -> None:
    raw.serve = Raw.answer(answer, close=True)
    with pytest.raises((RemoteProblem, BadGateway)):
        await call(raw.url).write("x")
    assert telemetry.ring is not None
    (span,) = telemetry.ring.recent(10)
    assert span.status == "error"
    assert f'error_type="{error_type}"'.encode() in telemetry.exposition()
