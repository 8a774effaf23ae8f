"""What was found out about the headers of one request holds for the next of its connection while they are the same,
and not a byte longer."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from microkit.web import Server
from microkit.web.limits import Limits

pytestmark = pytest.mark.anyio


async def test_each_request_of_a_connection_is_judged_by_its_own_headers(server: Server, http: Any) -> None:
    tokens = ["mine", "mine", None, "mine", "guest", "guest", "forged", "mine"]
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    for token in tokens:
        headers = [] if token is None else [f"Authorization: Bearer {token}"]
        writer.write(http.request("POST", "/things/secret", *headers, body=b""))
        answer = await http.read_answer(reader)
        assert answer.status == {"mine": 200, "guest": 403}.get(token or "", 401), token
    writer.close()


async def test_the_same_headers_of_pipelined_requests_are_each_their_own(server: Server, http: Any) -> None:
    one = http.request("POST", "/things/secret", "Authorization: Bearer mine", body=b"")
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(one + one + http.request("POST", "/things/secret", body=b"") + one)
    assert [(await http.read_answer(reader)).status for _ in range(4)] == [200, 200, 401, 200]
    writer.close()


async def test_a_trailer_is_no_header_of_the_next_request(server: Server, http: Any) -> None:
    head = http.request("POST", "/things/secret", "Transfer-Encoding: chunked")
    request = head + b"0\r\nAuthorization: Bearer mine\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    for _ in range(3):
        writer.write(request)
        assert (await http.read_answer(reader)).status == 401
    writer.close()


async def test_what_one_version_may_another_may_not(server: Server, http: Any) -> None:
    """The same headers in HTTP/1.0, which knows no chunks, after a request in HTTP/1.1 that had them."""
    chunked = "POST /things/secret HTTP/{}\r\nHost: things.test\r\nConnection: keep-alive\r\n"
    chunked += "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    for version, status in (("1.1", 401), ("1.1", 401), ("1.0", 400)):
        writer.write(chunked.format(version).encode())
        assert (await http.read_answer(reader)).status == status
    writer.close()


@pytest.mark.parametrize(
    "endless", [b"1;" + b"x" * 60_000, b"0\r\nX-Trailer: " + b"y" * 60_000], ids=["chunk extension", "trailer"]
)
@pytest.mark.parametrize("path", ["/things", "/things/secret"], ids=["not answered yet", "answered"])
async def test_what_nobody_reads_of_a_body_has_an_end(path: str, endless: bytes, server: Server, http: Any) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    head = http.request("POST", path, "Transfer-Encoding: chunked", "Content-Type: application/json")
    writer.write(head + endless)
    sent = 0
    with pytest.raises((ConnectionError, TimeoutError)):
        while True:
            writer.write(b"z" * 65_536)
            async with asyncio.timeout(20):
                await writer.drain()
            sent += 65_536
            assert sent < 50_000_000
    writer.close()


async def test_a_long_body_in_many_pieces_is_no_endless_one(server: Server, http: Any) -> None:
    """More bytes than a head may have, in pieces and in chunks, are an ordinary body."""
    text = b'{"name": "' + b"x" * (4 * (Limits().headers + Limits().url)) + b'"}'
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    head = http.request("POST", "/things", "Transfer-Encoding: chunked", "Content-Type: application/json")
    writer.write(head)
    for start in range(0, len(text), 1000):
        piece = text[start : start + 1000]
        writer.write(b"%x\r\n" % len(piece))
        await asyncio.sleep(0)
        writer.write(piece + b"\r\n")
        await writer.drain()
    writer.write(b"0\r\n\r\n")
    assert (await http.read_answer(reader)).status == 201
    writer.close()
