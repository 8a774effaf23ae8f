"""Services that hang, break off and lie, and clients that do."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import orjson
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route as Path

from microkit.gateway import Route

pytestmark = pytest.mark.anyio

SLOW = Route("/bills", service="billing", timeout=0.3)
ROUTE = Route("/bills", service="billing", timeout=5)


async def read_head(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\r\n\r\n")


async def problem(response: aiohttp.ClientResponse) -> tuple[int, str]:
    assert response.headers["Content-Type"] == "application/problem+json"
    return response.status, orjson.loads(await response.read())["detail"]


async def test_a_service_that_hangs_is_a_504(start: Any) -> None:
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        await asyncio.sleep(60)

    gateway = await start([SLOW], {"billing": hang})
    async with gateway.client.get(f"{gateway.url}/bills") as response:
        assert await problem(response) == (504, "The service billing did not answer in time")


@pytest.mark.parametrize("sent", [b"", b"half"])
@pytest.mark.parametrize("coding", [b"Content-Length: 10", b"Transfer-Encoding: chunked"])
async def test_a_client_that_stalls_its_body_gets_408_and_the_end_of_the_connection(
    sent: bytes, coding: bytes, start: Any
) -> None:
    async def read_all(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1000):
            pass

    gateway = await start([SLOW], {"billing": read_all})
    piece = b"4\r\n%s\r\n" % sent if sent and coding.startswith(b"T") else sent
    answer = await gateway.raw(b"POST /bills HTTP/1.1\r\nHost: x\r\n" + coding + b"\r\n\r\n" + piece)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in head.lower()
    assert orjson.loads(body)["type"] == "urn:problem:request-timeout"


async def test_a_service_that_stops_reading_an_upload_is_a_504(start: Any) -> None:
    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        writer.transport.pause_reading()  # type: ignore[attr-defined]  # of a socket it can
        await asyncio.sleep(60)

    async def endless() -> Any:
        while True:
            yield b"x" * 65536

    gateway = await start([SLOW], {"billing": deaf}, body_limit=1 << 40)
    async with gateway.client.post(f"{gateway.url}/bills", data=endless()) as response:
        assert await problem(response) == (504, "The service billing did not answer in time")


async def test_a_service_that_gave_the_client_up_first_ends_the_clients_connection_too(start: Any) -> None:
    async def impatient(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        writer.write(b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()

    gateway = await start([ROUTE], {"billing": impatient})
    answer = await gateway.raw(b"POST /bills HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in answer.lower()


async def test_a_service_that_trickles_its_head_is_a_504(start: Any) -> None:
    async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n")
        for number in range(600):
            writer.write(f"X-{number}: 1\r\n".encode())
            await writer.drain()
            await asyncio.sleep(0.1)

    gateway = await start([SLOW], {"billing": trickle})
    async with gateway.client.get(f"{gateway.url}/bills") as response:
        assert (await problem(response))[0] == 504


async def test_a_service_that_closes_without_an_answer_is_a_502(start: Any) -> None:
    async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)

    gateway = await start([ROUTE], {"billing": close})
    async with gateway.client.get(f"{gateway.url}/bills") as response:
        assert await problem(response) == (502, "The service billing closed the connection without an answer")


async def test_a_service_that_resets_the_connection_is_a_502(start: Any) -> None:
    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        writer.transport.abort()

    gateway = await start([ROUTE], {"billing": reset})
    async with gateway.client.get(f"{gateway.url}/bills") as response:
        assert (await problem(response))[0] == 502


async def test_a_service_that_speaks_no_http_is_a_502(start: Any) -> None:
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        writer.write(b"220 mail.example ESMTP\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(60)

    gateway = await start([ROUTE], {"billing": babble})
    async with gateway.client.get(f"{gateway.url}/bills") as response:
        assert await problem(response) == (502, "The service billing gave an answer that is no HTTP")


async def test_a_service_with_an_endless_head_is_a_502(start: Any) -> None:
    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            writer.write(b"X-Padding: " + b"x" * 4000 + b"\r\n")
            await writer.drain()

    gateway = await start([ROUTE], {"billing": endless})
    async with gateway.client.get(f"{gateway.url}/bills") as response:
        assert (await problem(response))[0] == 502


async def test_half_of_a_small_answer_is_a_502_and_not_half_an_answer(start: Any) -> None:
    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + b"x" * 50)
        await writer.drain()

    gateway = await start([ROUTE], {"billing": half})
    async with gateway.client.get(f"{gateway.url}/bills") as response:
        assert await problem(response) == (502, "The service billing broke off in the middle of its answer")


@pytest.mark.parametrize(
    "head",
    [b"Content-Length: 1000000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n186a0\r\n"],
    ids=["length", "chunked"],
)
async def test_half_of_a_large_answer_can_be_told_from_a_whole_one(start: Any, head: bytes) -> None:
    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n" + head + b"x" * 100_000 + b"\r\n")
        await writer.drain()

    gateway = await start([ROUTE], {"billing": half})
    async with gateway.client.get(f"{gateway.url}/bills") as response:
        assert response.status == 200
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()


async def test_an_answer_that_stalls_half_way_is_cut_off(start: Any) -> None:
    async def stall(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        await writer.drain()
        await asyncio.sleep(60)

    gateway = await start([SLOW], {"billing": stall})
    async with gateway.client.get(f"{gateway.url}/bills") as response:
        assert response.status == 200
        with pytest.raises(aiohttp.ClientPayloadError):
            await asyncio.wait_for(response.read(), 10)


@pytest.mark.parametrize("method", ["POST", "PATCH"])
async def test_an_unsafe_method_is_not_sent_twice(start: Any, method: str) -> None:
    requests = 0

    async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        while True:
            head = await read_head(reader)
            requests += 1
            if head.startswith(b"GET"):
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                await writer.drain()
            else:
                return

    gateway = await start([ROUTE], {"billing": close})
    # First a request that leaves a kept connection behind: the client library would retry on it if it were allowed to.
    async with gateway.client.get(f"{gateway.url}/bills") as response:
        assert response.status == 200
    async with gateway.client.request(method, f"{gateway.url}/bills", data=b"once") as response:
        assert (await problem(response))[0] == 502
    assert requests == 2


async def test_where_no_connection_can_be_made_the_next_instance_is_asked(start: Any) -> None:
    async def answer(_: Request) -> Response:
        return Response(b"here")

    alive = Starlette(routes=[Path("/bills", answer, methods=["POST"])])
    gateway = await start([ROUTE], {"billing": ["http://127.0.0.1:1", alive, "http://127.0.0.1:2"]})
    for _ in range(6):
        async with gateway.client.post(f"{gateway.url}/bills", data=b"x") as response:
            assert await response.read() == b"here"


async def test_a_service_that_cannot_be_reached_is_a_502_and_one_that_nobody_knows_a_503(start: Any) -> None:
    gateway = await start([ROUTE, Route("/users", service="user")], {"billing": ["http://127.0.0.1:1"]})
    async with gateway.client.get(f"{gateway.url}/bills") as response:
        assert await problem(response) == (502, "The service billing cannot be reached")
    async with gateway.client.get(f"{gateway.url}/users") as response:
        assert (await problem(response))[0] == 503


async def test_a_client_that_hangs_up_ends_the_work_behind(start: Any) -> None:
    hung_up = asyncio.Event()

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        if await reader.read() == b"":
            hung_up.set()

    gateway = await start([ROUTE], {"billing": wait})
    _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(b"GET /bills HTTP/1.1\r\nHost: a\r\n\r\n")
    await writer.drain()
    await asyncio.sleep(0.1)
    writer.close()
    await asyncio.wait_for(hung_up.wait(), 4)


async def test_a_client_that_hangs_up_ends_an_endless_answer(start: Any) -> None:
    ended = asyncio.Event()

    async def endless(_: Request) -> Response:
        async def pieces() -> Any:
            try:
                while True:
                    yield b"data: x\n\n"
                    await asyncio.sleep(0.01)
            finally:
                ended.set()

        return StreamingResponse(pieces())

    gateway = await start([ROUTE], {"billing": Starlette(routes=[Path("/bills", endless)])})
    response = await gateway.client.get(f"{gateway.url}/bills")
    await response.content.readany()
    response.close()
    await asyncio.wait_for(ended.wait(), 4)


async def test_a_client_that_hangs_up_in_its_upload_leaves_no_whole_request_behind(start: Any) -> None:
    outcome: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def upload(request: Request) -> Response:
        try:
            await request.body()
        except Exception as error:
            outcome.set_result(type(error).__name__)
            raise
        outcome.set_result("whole")
        return Response()

    gateway = await start([ROUTE], {"billing": Starlette(routes=[Path("/bills", upload, methods=["POST"])])})
    _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(b"POST /bills HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
    await writer.drain()
    await asyncio.sleep(0.1)
    writer.close()
    assert await asyncio.wait_for(outcome, 4) == "ClientDisconnect"


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_beyond_the_limit_is_refused(start: Any, chunked: bool) -> None:
    async def upload(request: Request) -> Response:
        await request.body()
        return Response(b"taken")

    app = Starlette(routes=[Path("/{path:path}", upload, methods=["POST"])])
    routes = [ROUTE, Route("/large", service="billing", body_limit=2000)]
    gateway = await start(routes, {"billing": app}, body_limit=1000)

    async def pieces(size: int) -> Any:
        for _ in range(size // 100):
            yield b"x" * 100
            await asyncio.sleep(0)

    for path, size, status in [
        ("/bills", 1000, 200),
        ("/bills", 1100, 413),
        ("/large", 1100, 200),
        ("/large", 2100, 413),
    ]:
        data = pieces(size) if chunked else b"x" * size
        async with gateway.client.post(gateway.url + path, data=data) as response:
            assert response.status == status


async def test_an_endless_upload_is_refused_early(start: Any) -> None:
    async def upload(request: Request) -> Response:
        await request.body()
        return Response(b"taken")

    app = Starlette(routes=[Path("/bills", upload, methods=["POST"])])
    gateway = await start([ROUTE], {"billing": app}, body_limit=100_000)
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(b"POST /bills HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    piece = b"2710\r\n" + b"x" * 10_000 + b"\r\n"

    async def send() -> None:
        for _ in range(10_000):
            writer.write(piece)
            await writer.drain()

    sending = asyncio.create_task(send())
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    assert head.startswith(b"HTTP/1.1 413 ")
    assert not sending.done()
    sending.cancel()
    writer.close()
    await asyncio.gather(sending, return_exceptions=True)


async def test_a_service_may_answer_before_the_upload_is_over(start: Any) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")
        await writer.drain()
        await reader.read(1)
        await asyncio.sleep(0.2)

    gateway = await start([ROUTE], {"billing": refuse})
    release = asyncio.Event()

    async def pieces() -> Any:
        yield b"x" * 10_000
        await release.wait()

    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(b"POST /bills HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 10_000)
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    assert head.startswith(b"HTTP/1.1 403 ")
    writer.close()


async def test_memory_is_bounded_when_the_client_reads_slowly(start: Any) -> None:
    sent = 0

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await read_head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        piece = b"10000\r\n" + b"x" * 65_536 + b"\r\n"
        while True:
            writer.write(piece)
            await writer.drain()
            sent += 65_536

    gateway = await start([Route("/bills", service="billing", timeout=30)], {"billing": flood})
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port, limit=1024)
    writer.write(b"GET /bills HTTP/1.1\r\nHost: a\r\n\r\n")
    await reader.readline()
    before = -1
    while before != sent:
        before = sent
        await asyncio.sleep(0.5)
    # What is under way stands in the kernel's and the libraries' buffers: megabytes on the loopback, and no more.
    assert 0 < sent < 64 * 1024 * 1024
    writer.close()


SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.mark.parametrize(
    "request_",
    [
        b"POST /bills HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        + SMUGGLED,
        b"POST /bills HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n"
        + SMUGGLED,
        b"POST /bills HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nContent-Length: 40\r\n\r\n" + SMUGGLED,
        b"POST /bills HTTP/1.1\r\nHost: a\r\nContent-Length: 0, 40\r\n\r\n" + SMUGGLED,
        b"POST /bills HTTP/1.1\r\nHost: a\r\nContent-Length: +40\r\n\r\n" + SMUGGLED,
        b"POST /bills HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
        b"POST /bills HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + SMUGGLED,
        b"POST /bills HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
        b"POST /bills HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
        b"POST /bills HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0x0\r\n\r\n" + SMUGGLED,
        b"POST /bills HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n\r\n" + SMUGGLED,
        b"POST /bills HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0;\n\r\n" + SMUGGLED,
        b"GET /bills HTTP/1.1\r\nHost: a\r\nX-Folded: 1\r\n Content-Length: 40\r\n\r\n" + SMUGGLED,
        b"GET /bills HTTP/1.1\nHost: a\nContent-Length: 40\n\n" + SMUGGLED,
        b"GET /bills HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /bills HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n",
        b"GET /bills HTTP/1.1\r\nHost: a\r\nX: a\rContent-Length: 40\r\n\r\n" + SMUGGLED,
        b"GET /bills HTTP/1.1\r\nHost: a\r\n: x\r\n\r\n",
    ],
)
async def test_a_request_with_two_readings_smuggles_nothing(start: Any, request_: bytes) -> None:
    heads: list[bytes] = []

    async def record(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            heads.append(await read_head(reader))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()

    gateway = await start([ROUTE, Route("/smuggled", service="billing")], {"billing": record})
    answer = await gateway.raw(request_)  # the connection ends with the refusal
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert heads == []
