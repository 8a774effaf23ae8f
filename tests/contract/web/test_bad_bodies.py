"""Bad bodies that people have sent to systems like this: each a problem document, never a 500, over a real socket."""

from __future__ import annotations

import gzip
from typing import Any

import pytest

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
