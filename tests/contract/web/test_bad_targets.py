"""Paths, queries, tokens and trace ids that are wrong: each a problem document, never a 500, over a real socket."""

from __future__ import annotations

from typing import Any

import pytest

from microkit.page import cursor_after

pytestmark = pytest.mark.anyio

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


async def test_a_bad_traceparent_starts_a_new_trace(wire: Any, http: Any) -> None:
    zeros, ones, span = "0" * 32, "1" * 32, "1" * 16
    for bad in (f"00-{zeros}-{span}-01", f"ff-{ones}-{span}-01", "\xff", "x" * 5000):
        answer = await wire(http.request("GET", "/nothing", f"traceparent: {bad}"))
        assert answer.status == 404
        assert answer.json["trace_id"] not in {zeros, ones}


async def test_the_options_of_the_server_itself_are_a_problem_and_no_fault(wire: Any, http: Any) -> None:
    answer = await wire(http.request("OPTIONS", "*"))
    assert answer.status == 404
    assert answer.headers["content-type"] == "application/problem+json"
