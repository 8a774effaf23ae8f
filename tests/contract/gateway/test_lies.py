"""Services that say one thing and send another, and what a client that shares their connection gets to see of it."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import orjson
import pytest

from microkit.gateway import Route
from microkit.gateway.filters import Filter, RequestHeaders, Retry

pytestmark = pytest.mark.anyio

ROUTE = Route("/bills", service="billing", timeout=5)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Liar:
    """Answers each connection's first request with what it is given, and others truthfully."""

    def __init__(self, lie: bytes, *, then_close: bool = False) -> None:
        self._lie = lie
        self._then_close = then_close
        self.connections = 0
        self.requests: list[bytes] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        first = self.connections == 1
        while True:
            self.requests.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(self._lie if first else OK)
            await writer.drain()
            if first and self._then_close:
                return
            first = False


async def asked(gateway: Any, method: str = "GET") -> tuple[int, bytes]:
    async with gateway.client.request(method, f"{gateway.url}/bills") as response:
        return response.status, await response.read()


async def behind(start: Any, liar: Liar, *routes: Route) -> Any:
    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await liar(reader, writer)

    return await start(list(routes) or [ROUTE], {"billing": behave})


@pytest.mark.parametrize(
    "surplus",
    [b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison", b"trailing", b"HTTP/1.1 200 OK\r\n", b"\x00" * 5000],
    ids=["a whole answer", "text", "half a head", "zeros"],
)
async def test_bytes_after_an_answers_end_are_never_the_next_clients(start: Any, surplus: bytes) -> None:
    liar = Liar(OK + surplus)
    gateway = await behind(start, liar)
    assert await asked(gateway) == (200, b"ok")
    assert await asked(gateway) == (200, b"ok")
    assert liar.connections == 2, "the connection is not used again"


async def test_an_answer_nobody_asked_for_is_never_the_next_clients(start: Any) -> None:
    async def talkative(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        await writer.drain()
        await asyncio.sleep(0.1)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison")
        await writer.drain()
        await reader.read()

    gateway = await start([ROUTE], {"billing": talkative})
    assert await asked(gateway) == (200, b"ok")
    await asyncio.sleep(0.4)
    assert await asked(gateway) == (200, b"ok")


@pytest.mark.parametrize(
    "lie",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok!",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nX: 1\r\n  folded\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
        b"HTTP/1.1 200 OK\r\nX: a\x00b\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nBad Name: 1\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nok",
        b"HTTP/1.1 999999 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 999 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/9.9 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"\x16\x03\x01\x02\x00",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2",
    ],
)
async def test_an_answer_with_two_readings_or_none_is_a_502_and_its_connection_is_ended(start: Any, lie: bytes) -> None:
    liar = Liar(lie, then_close=True)
    gateway = await behind(start, liar)
    status, body = await asked(gateway)
    assert status == 502
    assert orjson.loads(body)["type"] == "urn:problem:bad-gateway"
    assert await asked(gateway) == (200, b"ok")
    assert liar.connections == 2


async def test_interim_answers_and_trailers_are_no_part_of_the_answer(start: Any) -> None:
    liar = Liar(
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Trailer: 1\r\n\r\n"
    )
    gateway = await behind(start, liar)
    async with gateway.client.get(f"{gateway.url}/bills") as response:
        assert (response.status, await response.read()) == (200, b"ok")
        assert {"Link", "X-Trailer"}.isdisjoint(response.headers)
    assert await asked(gateway) == (200, b"ok")
    assert liar.connections == 1


async def test_an_answer_without_a_length_ends_with_its_connection(start: Any) -> None:
    liar = Liar(b"HTTP/1.1 200 OK\r\n\r\nto the end", then_close=True)
    gateway = await behind(start, liar)
    assert await asked(gateway) == (200, b"to the end")


@pytest.mark.parametrize("method", ["HEAD", "GET"])
async def test_answers_without_a_body_leave_the_connection_in_order(start: Any, method: str) -> None:
    lie = (
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
        if method == "HEAD"
        else b"HTTP/1.1 304 X\r\nContent-Length: 5\r\n\r\n"
    )
    liar = Liar(lie)
    gateway = await behind(start, liar)
    status, body = await asked(gateway, method)
    assert (status, body) == (200 if method == "HEAD" else 304, b"")
    assert await asked(gateway) == (200, b"ok")
    assert liar.connections == 1


async def test_a_kept_connection_that_its_server_ended_is_replaced_for_safe_requests_alone(start: Any) -> None:
    requests: list[bytes] = []

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Serves one request and ends the connection when the second has come.
        requests.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(OK)
        await writer.drain()
        requests.append(await reader.readuntil(b"\r\n\r\n"))

    gateway = await start([ROUTE], {"billing": once})
    assert await asked(gateway) == (200, b"ok")
    assert await asked(gateway) == (200, b"ok"), "sent again, on a new connection"
    assert [request[:4] for request in requests] == [b"GET ", b"GET ", b"GET "]
    status, _ = await asked(gateway, "DELETE")
    assert (status, requests[-1][:6]) == (502, b"DELETE")
    assert len(requests) == 4


@pytest.mark.parametrize(("method", "key", "times"), [("GET", "", 3), ("POST", "", 1), ("POST", "k", 3)])
async def test_with_retries_an_unsafe_request_goes_out_once_unless_it_has_a_key(
    start: Any, method: str, key: str, times: int
) -> None:
    requests: list[str] = []

    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        requests.append(method)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        await writer.drain()

    patient = Retry(attempts=3, backoff=0.001, keyed=True)
    gateway = await start([Route("/bills", "billing", filters=(patient,))], {"billing": half})
    headers = {"Idempotency-Key": key} if key else {}
    async with gateway.client.request(method, gateway.url + "/bills", headers=headers) as response:
        assert response.status == 502
    assert len(requests) == times


@pytest.mark.parametrize(
    ("filters", "more"),
    [((RequestHeaders(remove=("Idempotency-Key",)),), {}), ((), {"Connection": "idempotency-key"})],
    ids=["a filter takes it out", "the client takes it out"],
)
async def test_a_key_that_does_not_go_on_to_the_service_justifies_no_second_request(
    start: Any, filters: tuple[Filter, ...], more: dict[str, str]
) -> None:
    requests: list[bytes] = []

    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        await writer.drain()

    patient = Retry(attempts=3, backoff=0.001, keyed=True)
    gateway = await start([Route("/bills", "billing", filters=(*filters, patient))], {"billing": half})
    headers = {"Idempotency-Key": "k", **more}
    async with gateway.client.post(gateway.url + "/bills", headers=headers) as response:
        assert response.status == 502
    assert [b"idempotency-key" in request.lower() for request in requests] == [False]


async def test_one_that_was_busy_is_asked_again_where_the_others_are_away(start: Any) -> None:
    busy = [False]

    async def alive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await reader.readuntil(b"\r\n\r\n")
            busy[0] = not busy[0]
            full = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n"
            writer.write(full if busy[0] else OK)
            await writer.drain()

    patient = Retry(attempts=3, backoff=0.001)
    gateway = await start([Route("/bills", "billing", filters=(patient,))], {"billing": ["http://127.0.0.1:1", alive]})
    for _ in range(8):
        assert await asked(gateway) == (200, b"ok")


async def test_a_dead_instance_is_found_out_and_left_alone(start: Any) -> None:
    async def alive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(OK)
            await writer.drain()

    gateway = await start([ROUTE], {"billing": ["http://127.0.0.1:1", alive, alive]})
    for _ in range(60):
        assert (await asked(gateway))[0] == 200
    # Each failure makes it dearer than the others, and five end it; those that met it were answered by another.
    retries = b'http_client_retries_total{reason="connect",server_address="billing"} '
    told = gateway.telemetry.exposition().partition(retries)[2].partition(b"\n")[0]
    assert float(told or 0) <= 10


async def test_a_header_that_is_no_utf8_passes_neither_way_as_something_else(start: Any) -> None:
    liar = Liar(b"HTTP/1.1 200 OK\r\nX-Name: \xfc\r\nContent-Length: 2\r\n\r\nok")
    gateway = await behind(start, liar)
    answer = await gateway.raw(b"GET /bills HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert b"x-name: \xfc\r\n" in answer
    assert b"200" in answer.split(b"\r\n")[0]
    refused = await gateway.raw(b"GET /bills HTTP/1.1\r\nHost: a\r\nX-Name: \xfc\r\nConnection: close\r\n\r\n")
    assert refused.startswith(b"HTTP/1.1 400 ")


async def test_a_query_that_is_not_percent_encoded_is_refused(start: Any) -> None:
    liar = Liar(OK)
    gateway = await behind(start, liar)
    for query in (b"a=\xff", b"a=\x7f"):
        answer = await gateway.raw(b"GET /bills?" + query + b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 400 ")
    assert liar.requests == []


async def test_no_connection_stays_checked_out_whatever_became_of_the_exchange(start: Any) -> None:
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(60)

    gateway = await start([Route("/bills", "billing", timeout=0.3)], {"billing": hang})

    async def one(give_up: bool) -> None:
        try:
            async with asyncio.timeout(0.1 if give_up else 10):
                await asked(gateway)
        except (TimeoutError, aiohttp.ClientError):
            pass

    await asyncio.gather(*(one(number % 2 == 0) for number in range(20)))
    async with asyncio.timeout(60):
        while any(origin.open for origin in gateway.bound._pool._origins.values()):
            await asyncio.sleep(0.05)
    assert gateway.bound.report()["routes"]["/bills → billing"]["under_way"] == 0
