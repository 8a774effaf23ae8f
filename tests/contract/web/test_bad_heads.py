"""Heads of requests that mean two things, or none: each a problem document, never a 500, over a real socket."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from microkit.web import Server

pytestmark = pytest.mark.anyio

HEADS: dict[str, tuple[bytes, int]] = {
    "TRACE": (b"TRACE /things HTTP/1.1\r\nHost: things.test\r\n\r\n", 405),
    "TRACE of nothing": (b"TRACE /nothing HTTP/1.1\r\nHost: things.test\r\n\r\n", 405),
    "CONNECT": (b"CONNECT things.test:80 HTTP/1.1\r\nHost: things.test\r\n\r\n", 405),
    "a method that is not there": (b"DELETE /things HTTP/1.1\r\nHost: things.test\r\n\r\n", 405),
    "a method nobody knows": (b"BREW /things HTTP/1.1\r\nHost: things.test\r\n\r\n", 405),
    "a method that begins like another": (b"GETS /things HTTP/1.1\r\nHost: things.test\r\n\r\n", 405),
    "a method in small letters": (b"get /things HTTP/1.1\r\nHost: things.test\r\n\r\n", 405),
    "half a line with a method nobody knows": (b"BREW /things HT", 405),
    "what is no method": (b"GE(T /things HTTP/1.1\r\nHost: things.test\r\n\r\n", 400),
    "a word": (b"nonsense\r\n\r\n", 400),
    "HTTP/0.9": (b"GET /things\r\n\r\n", 400),
    "an empty host": (b"GET /things HTTP/1.1\r\nHost: \r\n\r\n", 400),
    "a host with white space": (b"GET /things HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
    "a host with a path": (b"GET /things HTTP/1.1\r\nHost: things.test/y\r\n\r\n", 400),
    "a host with a user": (b"GET /things HTTP/1.1\r\nHost: me@things.test\r\n\r\n", 400),
    "a host with a bad port": (b"GET /things HTTP/1.1\r\nHost: things.test:http\r\n\r\n", 400),
    "two hosts in one": (b"GET /things HTTP/1.1\r\nHost: things.test,evil.test\r\n\r\n", 400),
    "a foreign host": (b"GET /things HTTP/1.1\r\nHost: evil.test\r\n\r\n", 421),
    "a host that ends alike": (b"GET /things HTTP/1.1\r\nHost: evilthings.test\r\n\r\n", 421),
    "no host": (b"GET /things HTTP/1.1\r\n\r\n", 400),
    "two hosts": (b"GET /things HTTP/1.1\r\nHost: things.test\r\nHost: evil.test\r\n\r\n", 400),
    "another host in the target": (b"GET http://evil.test/things HTTP/1.1\r\nHost: things.test\r\n\r\n", 400),
    "a fragment": (b"GET /things#a HTTP/1.1\r\nHost: things.test\r\n\r\n", 400),
    "HTTP/2 without TLS": (b"GET /things HTTP/2.0\r\nHost: things.test\r\n\r\n", 505),
    "no HTTP at all": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    "bare line feeds": (b"GET /things HTTP/1.1\nHost: things.test\n\n", 400),
    "a folded header": (b"GET /things HTTP/1.1\r\nHost: things.test\r\nA: b\r\n c\r\n\r\n", 400),
    "white space before the colon": (b"GET /things HTTP/1.1\r\nHost : things.test\r\n\r\n", 400),
    "U+0000 in a header": (b"GET /things HTTP/1.1\r\nHost: things.test\r\nA: \0\r\n\r\n", 400),
    "length and chunks": (
        b"POST /things HTTP/1.1\r\nHost: things.test\r\nContent-Length: 5\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    "two lengths": (
        b"POST /things HTTP/1.1\r\nHost: things.test\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
        400,
    ),
    "a length with a sign": (b"POST /things HTTP/1.1\r\nHost: things.test\r\nContent-Length: +2\r\n\r\n{}", 400),
    "another transfer coding": (
        b"POST /things HTTP/1.1\r\nHost: things.test\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    "a transfer coding twice": (
        b"POST /things HTTP/1.1\r\nHost: things.test\r\nTransfer-Encoding: chunked\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    "chunks in HTTP/1.0": (b"POST /things HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "a negative chunk": (
        b"POST /things HTTP/1.1\r\nHost: things.test\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n-1\r\n{\r\n0\r\n\r\n",
        400,
    ),
    "two content types": (
        b"POST /things HTTP/1.1\r\nHost: things.test\r\nContent-Type: application/json\r\nContent-Type: text/plain\r\n"
        b"Content-Length: 12\r\n\r\n"
        b'{"name":"x"}',
        400,
    ),
    "two authorizations": (
        b"POST /things/secret HTTP/1.1\r\nHost: things.test\r\nAuthorization: Bearer mine\r\n"
        b"Authorization: Bearer guest\r\n\r\n",
        400,
    ),
}


@pytest.mark.parametrize("case", HEADS)
async def test_a_bad_head_is_refused_with_a_problem(case: str, wire: Any) -> None:
    raw, status = HEADS[case]
    answer = await wire(raw)
    assert answer.status == status, answer.body
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json["status"] == status
    assert answer.headers.get("allow") if status == 405 else "allow" not in answer.headers
    assert ("is not well-formed" in answer.json["title"]) <= (status == 400)
    check_ids(answer)


def check_ids(answer: Any) -> None:
    """Whoever reads the problem can name it: by its trace, and by the request's id."""
    assert len(answer.json["trace_id"]) == 32
    assert int(answer.json["trace_id"], 16)
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize(
    "raw", [b"\x16\x03\x01", b"GET /" + b"a" * 9000, b"A: " + b"b" * 17_000, b"GET /things HTTP/1.1\r\n"]
)
async def test_what_is_refused_before_its_head_is_whole_has_a_trace_of_its_own(raw: bytes, wire: Any) -> None:
    first, second = await wire(raw), await wire(raw)
    check_ids(first)
    check_ids(second)
    assert first.json["trace_id"] != second.json["trace_id"]


@pytest.mark.parametrize("end", [b"", b"A: b\r\n c\r\n\r\n", b"Content-Length: x\r\n\r\n"])
async def test_a_refused_head_keeps_the_trace_and_the_id_that_were_read_before(end: bytes, wire: Any) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    head = (
        b"POST /things HTTP/1.1\r\nHost: things.test\r\n"
        b"X-Request-ID: mine-7\r\ntraceparent: 00-" + trace.encode() + b"-b7ad6b7169203331-01\r\nA: b\r\n"
    )
    answer = await wire(head + end)
    assert answer.status == (400 if end else 408)
    assert answer.json["trace_id"] == trace
    assert answer.headers["x-request-id"] == "mine-7"


async def test_a_line_that_is_no_request_has_nothing_of_the_request_before(server: Server, http: Any) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    trace = "0af7651916cd43dd8448eb211c80319c"
    writer.write(http.request("GET", "/nothing", f"traceparent: 00-{trace}-b7ad6b7169203331-01", "X-Request-ID: first"))
    assert (await http.read_answer(reader)).json["trace_id"] == trace
    writer.write(b"nonsense\r\n\r\n")
    answer = await http.read_answer(reader)
    check_ids(answer)
    assert answer.json["trace_id"] != trace
    assert answer.headers["x-request-id"] != "first"
    writer.close()


async def test_an_unknown_method_after_a_request_is_told_by_its_name(server: Server, http: Any) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(http.request("GET", "/nothing"))
    assert (await http.read_answer(reader)).status == 404
    writer.write(http.request("BREW", "/pot"))
    answer = await http.read_answer(reader)
    assert (answer.status, answer.json["detail"]) == (405, "There is no method BREW")
    assert answer.json["instance"] == "/pot"
    writer.close()


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *(
            (good, 200)
            for good in ("x", "x:", "x:80", "a-b.c_d:8080", "127.0.0.1:1", "[::1]", "[::1]:3000", "X.Example.")
        ),
        *(
            (bad, 400)
            for bad in (
                "",
                ":80",
                "a b",
                "x/y",
                "x:y",
                "x:1:2",
                "::1",
                "[::1",
                "[x]",
                "a,b",
                "\xfc.de",
                "x?",
                "http://x",
            )
        ),
    ],
)
async def test_a_host_is_a_host_where_any_is_allowed_too(host: str, status: int, http: Any) -> None:
    server = Server(http.things_app())
    await server.start()
    answer = await http.wire_to(server)(http.request("GET", "/things", host=host))
    assert answer.status == status
    if status == 400:
        assert "Host" in answer.json["detail"]
        check_ids(answer)
    await server.stop(5)


async def test_a_long_url_is_refused_while_it_is_read(wire: Any) -> None:
    answer = await wire(b"GET /" + b"a" * 9000)  # the head never ends
    assert answer.status == 414
    assert answer.closed


async def test_a_header_of_100_kib_is_refused_while_it_is_read(wire: Any) -> None:
    head = b"GET /things HTTP/1.1\r\nHost: things.test\r\nX-Big: "
    answer = await wire(head, *[b"a" * 10_000] * 10)  # the header never ends
    assert answer.status == 431
    assert answer.closed


async def test_a_hundred_and_one_headers_are_refused_while_they_are_read(wire: Any) -> None:
    head = b"GET /things HTTP/1.1\r\nHost: things.test\r\n" + b"A: b\r\n" * 100 + b"\r\n"
    assert (await wire(head)).status == 431


async def test_a_hundred_headers_are_taken(wire: Any) -> None:
    head = b"GET /things HTTP/1.1\r\nHost: things.test\r\n" + b"A: b\r\n" * 99 + b"\r\n"
    assert (await wire(head)).status == 200


async def test_many_headers_of_17_kib_together_are_refused(wire: Any) -> None:
    head = b"GET /things HTTP/1.1\r\nHost: things.test\r\n" + (b"A: " + b"b" * 996 + b"\r\n") * 17 + b"\r\n"
    assert (await wire(head)).status == 431


async def test_a_head_that_comes_too_slowly_is_refused(wire: Any) -> None:
    answer = await wire(b"GET /things HTTP/1.1\r\nHost: thi")
    assert answer.status == 408
    assert answer.closed


async def test_a_connection_on_which_nothing_comes_is_closed(server: Server) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    assert await asyncio.wait_for(reader.read(), 10) == b""
    writer.close()
