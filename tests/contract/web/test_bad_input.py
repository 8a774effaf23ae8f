"""Bad input that people have sent to systems like this: each a problem document, never a 500, over a real socket."""

from __future__ import annotations

import asyncio
import gzip
import os
import subprocess
import sys
from pathlib import Path
from socket import SO_LINGER, SOL_SOCKET
from struct import pack
from typing import Any

import pytest
import uvloop

from microkit.page import cursor_after
from microkit.web import Server

pytestmark = pytest.mark.anyio

BODIES: dict[str, tuple[bytes, int, str]] = {
    "nothing": (b"", 400, "empty"),
    "white space": (b" \r\n\t", 400, "empty"),
    "half an array": (b"[", 400, "line 1"),
    "half an object": (b'{"name": "x"', 400, "line 1"),
    "two documents": (b'{"name":"x"} {"name":"y"}', 400, "trailing"),
    "a comment": (b'{"name":"x"} // y', 400, ""),
    "single quotes": (b"{'name': 'x'}", 400, ""),
    "NaN": (b'{"name":"x","ratio":NaN}', 400, "NaN"),
    "NaN where anything goes": (b'{"name":"x","anything":[NaN]}', 400, "NaN"),
    "Infinity": (b'{"name":"x","ratio":-Infinity}', 400, "Infinity"),
    "a number beyond doubles": (b'{"name":"x","ratio":1e999}', 400, "double"),
    "a number that becomes zero": (b'{"name":"x","price":1e-999}', 400, "double"),
    "more digits than a double holds": (b'{"name":"x","price":12345678901.1234567}', 400, "as a string"),
    "an integer of 5,000 digits": (b'{"name":"x","count":' + b"9" * 5000 + b"}", 400, "64 bits"),
    "an integer beyond 64 bits": (b'{"name":"x","count":9223372036854775808}', 400, "64 bits"),
    "200,000 nested arrays": (b"[" * 200_000 + b"]" * 200_000, 400, "deeper than 32"),
    "33 nested arrays": (b'{"name":"x","anything":' + b"[" * 32 + b"]" * 32 + b"}", 400, "deeper than 32"),
    "a lone surrogate": (b'{"name":"\\ud800"}', 400, ""),
    "a lone surrogate as a key": (b'{"name":"x","anything":{"\\udc00":1}}', 400, ""),
    "bytes that are not UTF-8": (b'{"name":"\xff\xfe"}', 400, "UTF-8"),
    "an overlong encoding": (b'{"name":"\xc0\xaf"}', 400, "UTF-8"),
    "UTF-16": ('{"name":"x"}'.encode("utf-16"), 400, "UTF-8"),
    "a byte order mark": ('{"name":"x"}'.encode("utf-8-sig"), 400, ""),
    "a key twice": (b'{"name":"x","name":"y"}', 400, "'name' is there twice"),
    "a key twice, once escaped": (b'{"name":"x","n\\u0061me":"y"}', 400, "'name' is there twice"),
    "a key twice, deep down": (b'{"name":"x","anything":[{"a":{"b":1,"b":2}}]}', 400, "'b' is there twice"),
    "U+0000": (b'{"name":"a\\u0000b"}', 400, "U+0000"),
    "a raw control character": (b'{"name":"a\x01b"}', 400, "control character"),
    "a time beyond 9999 in UTC": (b'{"name":"x","at":"9999-12-31T23:59:59-12:00"}', 422, '"/at"'),
    "a time beyond 9999, escaped": (b'{"name":"x","at":"\\u0039999-12-31T23:59:59-12:00"}', 422, '"/at"'),
    "a time beyond 9999, with U+2212": ('{"name":"x","at":"9999-12-31T23:59:59\u221212:00"}'.encode(), 422, '"/at"'),
    "a time before year 1 in UTC": (b'{"name":"x","at":"0001-01-01T00:00:00+00:01"}', 422, '"/at"'),
    "a date past 9999": (b'{"name":"x","at":"10000-01-01T00:00:00Z"}', 422, "/at"),
    "an unknown field": (b'{"name":"x","is_admin":true}', 422, "/is_admin"),
    "no object": (b"[]", 422, ""),
    "null": (b"null", 422, ""),
    "text for an integer": (b'{"name":"x","count":"1"}', 422, "/count"),
    "true for an integer": (b'{"name":"x","count":true}', 422, "/count"),
    "1_000 for an integer": (b'{"name":"x","count":"1_000"}', 422, "/count"),
    "a fraction for an integer": (b'{"name":"x","count":1.0}', 422, "/count"),
    "a number for text": (b'{"name":5}', 422, "/name"),
    "Decimal NaN": (b'{"name":"x","price":"NaN"}', 422, "/price"),
    "Decimal sNaN": (b'{"name":"x","price":"sNaN"}', 422, "/price"),
    "Decimal Infinity": (b'{"name":"x","price":"-Infinity"}', 422, "/price"),
    "Decimal 1_000": (b'{"name":"x","price":"1_000"}', 422, "/price"),
    "Decimal in Arabic digits": ('{"name":"x","price":"\u0661\u0662"}'.encode(), 422, "/price"),
    "Decimal in escaped Arabic digits": (b'{"name":"x","price":"\\u0661\\u0662"}', 422, "/price"),
    "Decimal that fills the memory": (b'{"name":"x","price":"1e999999"}', 422, "/price"),
    "full-width digits in a code": (
        '{"name":"x","code":"\uff11\uff12\uff13\uff14\uff15\uff16"}'.encode(),
        422,
        "/code",
    ),
    "a malformed UUID": (b'{"name":"x","owner":"not-a-uuid"}', 422, "/owner"),
    "half a million errors": (b'{"name":[' + b"1," * 400_000 + b"1]}", 422, ""),
}


@pytest.mark.parametrize("case", BODIES)
async def test_a_bad_body_is_refused_with_a_problem(case: str, wire: Any, http: Any) -> None:
    body, status, hint = BODIES[case]
    answer = await wire(http.post_json(body))
    assert answer.status == status, answer.body
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json["status"] == status
    assert answer.json["type"].startswith("urn:problem:")
    assert len(answer.json["trace_id"]) == 32
    assert answer.json["instance"] == "/things"
    assert hint in answer.body.decode()


GOOD_BODIES: dict[str, tuple[bytes, dict[str, object]]] = {
    "the smallest 64-bit integer": (b'{"name":"x","count":-9223372036854775808}', {"count": -(2**63)}),
    "a backslash before u0000": (rb'{"name":"a\\u0000"}', {"name": r"a\u0000"}),
    "brackets within text": (b'{"name":"' + b"[{" * 500 + b'"}', {"name": "[{" * 500}),
    "32 levels": (b'{"name":"x","anything":' + b"[" * 31 + b"]" * 31 + b"}", {"name": "x"}),
    "a surrogate pair": (rb'{"name":"\ud83d\ude00"}', {"name": "\U0001f600"}),
    "a decimal as text": (b'{"name":"1_000","price":"12345678901.1234567"}', {"price": "12345678901.1234567"}),
    "a small decimal as Python writes it": (b'{"name":"x","price":"1E-7"}', {"price": "1E-7"}),
    "a decimal as a number": (b'{"name":"x","price":0.1}', {"price": "0.1"}),
    "seventeen digits that round-trip": (b'{"name":"x","ratio":0.30000000000000004}', {"ratio": 0.30000000000000004}),
    "the last second of 9999": (b'{"name":"x","at":"9999-12-31T23:59:59Z"}', {"at": "9999-12-31T23:59:59Z"}),
    "text that looks like a time off the calendar": (
        b'{"name":"9999-12-31T23:59:59-12:00","anything":["0001-01-01T00:00:00+00:01"]}',
        {"name": "9999-12-31T23:59:59-12:00", "anything": ["0001-01-01T00:00:00+00:01"]},
    ),
    "Arabic digits where text is meant": ('{"name":"\u0661_\u0662"}'.encode(), {"name": "\u0661_\u0662"}),
}


@pytest.mark.parametrize("case", GOOD_BODIES)
async def test_what_only_looks_bad_is_taken(case: str, wire: Any, http: Any) -> None:
    body, expected = GOOD_BODIES[case]
    answer = await wire(http.post_json(body))
    assert answer.status == 201, answer.body
    assert answer.json | expected == answer.json


OWNER = "6f1c0d1e-9a3b-4c55-8c2a-5d0f4b1e7a90"

TARGETS: dict[str, tuple[str, int, str]] = {
    "an encoded slash": ("/%2fadmin", 400, "slash"),
    "an encoded slash, upper case": ("/things%2F1", 400, "slash"),
    "two slashes": ("//admin", 400, "empty segment"),
    "a dot segment": ("/things/../admin", 400, "dot segment"),
    "an encoded dot segment": ("/things/%2e%2e/admin", 400, "dot segment"),
    "an encoded dot segment and slash": ("/%2e%2e%2fadmin", 400, "slash"),
    "a half-encoded dot segment": ("/things/.%2e/admin", 400, "dot segment"),
    "a dot segment at the end": ("/things/..", 400, "dot segment"),
    "a backslash": ("/things\\admin", 400, ""),
    "an encoded backslash": ("/things%5cadmin", 400, "backslash"),
    "an encoded U+0000": ("/things/%00", 400, "control character"),
    "an encoded line feed": ("/things/%0a", 400, "control character"),
    "a malformed escape": ("/things/%zz", 400, "malformed"),
    "half an escape": ("/things/%4", 400, "malformed"),
    "bytes that are not UTF-8": ("/things/%ff", 400, "UTF-8"),
    "no such path": ("/nothing", 404, "nothing at this path"),
    "a slash at the end": ("/things/", 404, "nothing at this path"),
    "a malformed UUID in the path": ("/things/x/1", 422, "/owner"),
    "1_000 in the path": (f"/things/{OWNER}/1_000", 422, "/number"),
    "Arabic digits in the path": (f"/things/{OWNER}/%D9%A1", 422, "/number"),
    "full-width digits in the path": (f"/things/{OWNER}/%EF%BC%91", 422, "/number"),
    "an integer beyond 64 bits in the path": (f"/things/{OWNER}/9223372036854775808", 422, "/number"),
    "a query with 1_000": ("/things?most=1_000", 422, "/most"),
    "a query with white space": ("/things?most=%201", 422, "/most"),
    "a query with a fraction": ("/things?most=1.0", 422, "/most"),
    "a query with true as an integer": ("/things?most=true", 422, "/most"),
    "a query with yes as truth": ("/things?cheap=yes", 422, "/cheap"),
    "a parameter twice": ("/things?most=1&most=2", 422, "more than once"),
    "an unknown parameter": ("/things?mots=1", 422, "/mots"),
    "a query that is not UTF-8": ("/things?most=%ff", 400, "UTF-8"),
    "U+0000 in the query": ("/things?most=%00", 400, "U+0000"),
    "a malformed escape in the query": ("/things?most=%4", 400, "malformed"),
    "many parameters": ("/things?" + "&".join(f"a{n}=1" for n in range(200)), 400, "fields"),
    "a page of 101": ("/things?limit=101", 422, "/limit"),
    "a page of 0": ("/things?limit=0", 422, "/limit"),
    "a page of 1_0": ("/things?limit=1_0", 422, "/limit"),
    "a malformed cursor": ("/things?cursor=%3F%3F", 400, "cursor"),
    "a cursor that is no JSON": ("/things?cursor=aGVsbG8", 400, "cursor"),
    "a cursor of another type": (f"/things?cursor={cursor_after([1, 2])}", 400, "cursor"),
    "a cursor that is too long": ("/things?cursor=" + "a" * 600, 422, "/cursor"),
}


@pytest.mark.parametrize("case", TARGETS)
async def test_a_bad_target_is_refused_with_a_problem(case: str, wire: Any, http: Any) -> None:
    target, status, hint = TARGETS[case]
    answer = await wire(http.request("GET", target))
    assert answer.status == status, answer.body
    assert answer.headers["content-type"] == "application/problem+json"
    assert hint in answer.body.decode()


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


async def test_two_mebibytes_are_refused_before_they_are_read(wire: Any, http: Any) -> None:
    head = http.request("POST", "/things", "Content-Type: application/json", f"Content-Length: {2 << 20}")
    answer = await wire(head)  # not one byte of the body
    assert answer.status == 413
    assert answer.closed


async def test_a_client_that_goes_on_sending_still_reads_its_413(wire: Any, http: Any) -> None:
    head = http.request("POST", "/things", "Content-Type: application/json", f"Content-Length: {8 << 20}")
    answer = await wire(head, *[b" " * 65536] * 128)
    assert answer.status == 413


async def test_a_body_of_endless_chunks_is_refused_when_the_limit_is_passed(wire: Any, http: Any) -> None:
    head = http.request("POST", "/things", "Content-Type: application/json", "Transfer-Encoding: chunked")
    answer = await wire(head, *[b"4000\r\n" + b" " * 0x4000 + b"\r\n"] * 80)
    assert answer.status == 413
    assert answer.closed


async def test_a_body_of_endless_chunks_is_refused_where_nobody_reads_it(wire: Any, http: Any) -> None:
    head = http.request("POST", "/things/secret", "Authorization: Bearer mine", "Transfer-Encoding: chunked")
    answer = await wire(head, *[b"4000\r\n" + b" " * 0x4000 + b"\r\n"] * 80)
    assert answer.status == 413


async def test_a_body_that_just_fits_is_taken(wire: Any, http: Any) -> None:
    start, end = b'{"name":"', b'"}'
    body = start + b"x" * ((1 << 20) - len(start) - len(end)) + end
    assert (await wire(http.post_json(body))).status == 201


async def test_a_gzip_bomb_is_not_unpacked(wire: Any, http: Any) -> None:
    bomb = gzip.compress(b'{"name":"' + b"x" * (10 << 20) + b'"}')
    assert len(bomb) < 1 << 20
    answer = await wire(http.post_json(bomb, "Content-Encoding: gzip"))
    assert answer.status == 415
    assert answer.headers["accept-encoding"] == "identity"


@pytest.mark.parametrize(
    "media_type",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/jsonp",
        "application/json; charset=utf-16",
        "application/json, text/plain",
        "",
    ],
)
async def test_another_media_type_is_refused(media_type: str, wire: Any, http: Any) -> None:
    answer = await wire(http.post_json(b'{"name":"x"}', media_type=media_type))
    assert answer.status == 415
    assert answer.headers["accept"] == "application/json"


@pytest.mark.parametrize(
    "media_type",
    ["application/json; charset=utf-8", "Application/JSON;charset=UTF-8", 'application/json; charset="utf-8"',
     "application/merge-patch+json"],
)  # fmt: skip
async def test_json_by_another_name_is_taken(media_type: str, wire: Any, http: Any) -> None:
    assert (await wire(http.post_json(b'{"name":"x"}', media_type=media_type))).status == 201


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        (None, 401),
        ("Bearer forged", 401),
        ("Bearer", 401),
        ("Basic bWU6bWU=", 401),
        ("Bearer " + "x" * 9000, 401),
        ("Bearer \xff\xfe", 401),
        ("Bearer guest", 403),
        ("Bearer mine", 200),
        ("bearer mine", 200),
    ],
)
async def test_a_token_decides_who_may_call(authorization: str | None, status: int, wire: Any, http: Any) -> None:
    headers = [] if authorization is None else [f"Authorization: {authorization}"]
    answer = await wire(http.request("POST", "/things/secret", *headers, body=b""))
    assert answer.status == status
    assert ("www-authenticate" in answer.headers) is (status == 401)


async def test_a_trailer_does_not_pass_for_a_header(wire: Any, http: Any) -> None:
    head = http.request("POST", "/things/secret", "Transfer-Encoding: chunked")
    answer = await wire(head, b"1\r\n \r\n", b"0\r\nAuthorization: Bearer mine\r\n\r\n")
    assert answer.status == 401


async def test_a_bad_traceparent_starts_a_new_trace(wire: Any, http: Any) -> None:
    zeros, ones, span = "0" * 32, "1" * 32, "1" * 16
    for bad in (f"00-{zeros}-{span}-01", f"ff-{ones}-{span}-01", "\xff", "x" * 5000):
        answer = await wire(http.request("GET", "/nothing", f"traceparent: {bad}"))
        assert answer.status == 404
        assert answer.json["trace_id"] not in {zeros, ones}


async def test_a_request_after_a_refused_one_on_the_same_connection_is_served(server: Server, http: Any) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(http.post_json(b"[") + http.post_json(b'{"name":"x"}'))
    assert (await http.read_answer(reader)).status == 400
    assert (await http.read_answer(reader)).status == 201
    writer.close()


async def test_an_answer_under_way_comes_before_the_end_of_a_broken_connection(server: Server, http: Any) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(http.post_json(b'{"name":"x"}') + b"nonsense\r\n\r\n")
    answer = await http.read_answer(reader)
    assert answer.status == 201
    assert await asyncio.wait_for(reader.read(), 10) == b""
    writer.close()


async def test_the_options_of_the_server_itself_are_a_problem_and_no_fault(wire: Any, http: Any) -> None:
    answer = await wire(http.request("OPTIONS", "*"))
    assert answer.status == 404
    assert answer.headers["content-type"] == "application/problem+json"


async def test_a_connection_whose_body_stops_coming_is_closed_after_the_answer(server: Server, http: Any) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(http.request("POST", "/things/secret", "Content-Length: 900"))
    assert (await http.read_answer(reader)).status == 401

    async def dribble() -> None:
        while True:
            writer.write(b"x")
            await asyncio.sleep(0.05)

    dribbling = asyncio.create_task(dribble())
    assert await asyncio.wait_for(reader.read(), 10) == b""
    dribbling.cancel()
    writer.close()


async def test_a_body_that_comes_after_the_answer_keeps_the_connection(server: Server, http: Any) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(http.request("POST", "/things/secret", "Content-Length: 4"))
    assert (await http.read_answer(reader)).status == 401
    writer.write(b"late")
    await asyncio.sleep(1.0)  # longer than a head may take here
    writer.write(http.post_json(b'{"name":"x"}'))
    assert (await http.read_answer(reader)).status == 201
    writer.close()


def test_an_answer_to_a_client_that_left_in_a_pipeline_is_dropped_by_uvloop_too() -> None:
    """uvloop's transports raise where those of asyncio drop what is written after the end.

    In a process of its own, which ends without closing its loop: uvloop's ``close`` has been seen to hang there.
    """
    code = "from tests.contract.web.test_bad_input import answer_a_client_that_left as run; run()"
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", code], cwd=root, timeout=60, check=True)


def answer_a_client_that_left() -> None:
    failed: list[Exception] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        came.set()
        await left.wait()
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for _ in range(3):
                await send({"type": "http.response.body", "body": b"for nobody", "more_body": True})
                await asyncio.sleep(0.05)  # writing is how the server learns that the connection is lost
            await send({"type": "http.response.body", "body": b""})
        except RuntimeError as error:
            failed.append(error)
        answered.set()

    async def leave_early() -> None:
        server = Server(app)
        await server.start()
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 2)
        await asyncio.wait_for(came.wait(), 10)
        writer.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, pack("ii", 1, 0))
        writer.transport.abort()  # a reset
        left.set()
        await asyncio.wait_for(answered.wait(), 10)
        await server.stop(5)

    came, left, answered = asyncio.Event(), asyncio.Event(), asyncio.Event()
    uvloop.new_event_loop().run_until_complete(leave_early())
    os._exit(1 if failed else 0)
