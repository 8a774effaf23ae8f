"""The head of a request behind another server than ours, which has counted nothing."""

from __future__ import annotations

from typing import Any

import pytest

from microkit.errors import BadRequest, HeadersTooLarge, MisdirectedRequest, UrlTooLong
from microkit.web import Limits
from microkit.web.admission import Admission


def check(path: str = "/", query: bytes = b"", limits: Limits | None = None, *headers: tuple[bytes, bytes]) -> None:
    scope: dict[str, Any] = {"path": path, "raw_path": path.encode(), "query_string": query, "headers": list(headers)}
    Admission(limits or Limits()).check(scope, dict(headers))


def test_a_long_url_is_refused_with_or_without_a_query() -> None:
    with pytest.raises(UrlTooLong):
        check("/" + "a" * 8192)
    with pytest.raises(UrlTooLong):
        check("/", b"a" * 8192)
    check("/" + "a" * 4000, b"a" * 4000)


def test_headers_are_counted_and_measured_also_where_they_repeat() -> None:
    with pytest.raises(HeadersTooLarge):
        check("/", b"", None, (b"a", b"b" * 17_000))
    with pytest.raises(HeadersTooLarge):
        check("/", b"", None, *[(b"cookie", b"b" * 200)] * 90)
    with pytest.raises(HeadersTooLarge):
        check("/", b"", None, *[(b"a%d" % number, b"") for number in range(101)])
    check("/", b"", None, *[(b"cookie", b"b" * 100)] * 90)


def test_a_header_that_decides_something_must_not_be_there_twice() -> None:
    with pytest.raises(BadRequest, match="authorization"):
        check("/", b"", None, (b"authorization", b"Bearer a"), (b"authorization", b"Bearer b"))
    check("/", b"", None, (b"accept", b"a/b"), (b"accept", b"c/d"))


@pytest.mark.parametrize("host", [b"api.test", b"API.TEST:8080", b"[::1]", b"[::1]:80", b"x.sub.test", b"api.test:"])
def test_an_allowed_host_passes_with_and_without_its_port(host: bytes) -> None:
    check("/", b"", Limits(allowed_hosts=("api.test", "[::1]", "*.sub.test")), (b"host", host))


@pytest.mark.parametrize("host", [b"evil", b"api.test.evil", b"sub.test", b"[::2]"])
def test_another_host_is_refused(host: bytes) -> None:
    with pytest.raises(MisdirectedRequest):
        check("/", b"", Limits(allowed_hosts=("api.test", "[::1]", "*.sub.test")), (b"host", host))


@pytest.mark.parametrize("host", [b"", b"api.test:80:90", b"api.test@evil", b"api.test evil", b"api.test/", b"a,b"])
@pytest.mark.parametrize("allowed", ["*", "api.test"])
def test_what_is_no_host_is_refused_whatever_is_allowed(host: bytes, allowed: str) -> None:
    with pytest.raises(BadRequest, match="Host"):
        check("/", b"", Limits(allowed_hosts=(allowed,)), (b"host", host))


def test_a_server_that_gives_no_raw_path_is_served_too() -> None:
    scope: dict[str, Any] = {"path": "/a b", "query_string": b"", "headers": []}
    Admission(Limits()).check(scope, {})
    with pytest.raises(BadRequest):
        Admission(Limits()).check({**scope, "path": "/a/../b"}, {})
