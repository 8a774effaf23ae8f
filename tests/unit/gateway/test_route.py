"""Which route a path takes, and which paths have no single reading."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microkit.contract import SIGNED_IN
from microkit.errors import BadRequest, DefinitionError
from microkit.gateway import Route
from microkit.gateway.paths import canonical_path
from microkit.gateway.table import RouteTable

BILLS = Route("/api/bills", service="billing", strip_prefix="/api")
ADMIN = Route("/api/bills/admin", service="admin", allow="admin")
REST = Route("/", service="site")


def test_the_route_with_the_longest_prefix_wins() -> None:
    table = RouteTable([REST, BILLS, ADMIN])
    assert table.find("/api/bills/7") == (BILLS,)
    assert table.find("/api/bills") == (BILLS,)
    assert table.find("/api/bills/admin/x") == (ADMIN,)
    assert table.find("/elsewhere") == (REST,)
    assert table.find("/") == (REST,)


def test_a_prefix_ends_where_a_segment_ends() -> None:
    table = RouteTable([BILLS])
    assert table.find("/api/billsx") == ()
    assert table.find("/api/bill") == ()
    assert table.find("/") == ()


def test_a_thousand_routes_are_told_apart() -> None:
    routes = [Route(f"/api/s{number}", service=f"s{number}") for number in range(1000)]
    table = RouteTable(routes)
    assert [table.find(f"/api/s{number}/x")[0].service for number in range(1000)] == [f"s{n}" for n in range(1000)]


def test_routes_of_one_prefix_differ_in_their_methods() -> None:
    reads = Route("/a", service="reader", methods=("GET",))
    writes = Route("/a", service="writer", methods=("POST",))
    assert RouteTable([reads, writes]).find("/a/1") == (reads, writes)
    with pytest.raises(DefinitionError, match="same methods"):
        RouteTable([reads, Route("/a", service="other", methods=("GET",))])


@pytest.mark.parametrize(
    "prefix", ["api", "/api/", "/api//x", "/api/../x", "/%61pi", ""], ids=lambda prefix: prefix or "empty"
)
def test_a_route_that_could_never_match_is_refused(prefix: str) -> None:
    with pytest.raises((DefinitionError, BadRequest)):
        Route(prefix, service="billing")


def test_a_route_says_what_is_wrong_with_it() -> None:
    with pytest.raises(DefinitionError, match="strip_prefix"):
        Route("/api/bills", service="billing", strip_prefix="/ap")
    with pytest.raises(DefinitionError, match="names no service"):
        Route("/api", service="")
    with pytest.raises(DefinitionError, match="timeout"):
        Route("/api", service="billing", timeout=0)


def test_the_prefix_is_stripped_and_put_back() -> None:
    assert BILLS.upstream_path("/api/bills/7") == "/bills/7"
    assert BILLS.public_path("/bills/7") == "/api/bills/7"
    assert Route("/shop", service="shop", strip_prefix="/shop").upstream_path("/shop") == "/"
    assert Route("/x", service="x", allow=SIGNED_IN).roles == (SIGNED_IN,)


@pytest.mark.parametrize(
    "path",
    [
        "//admin",
        "/api//bills",
        "/api/bills/../users",
        "/api/bills/%2e%2e%2fusers",
        "/api/bills/%2e%2E/users",
        "/api/bills/.%2e",
        "/api/./bills",
        "/api/bills/..;x=1/users",
        "/%2fadmin",
        "/api%2Fbills",
        "/api/%5c..%5cusers",
        "/api\\bills",
        "/api/bills/%00",
        "/api/bills/%0d%0aX-User-Id:%201",
        "/api/bills/%7f",
        "/api/bills/%zz",
        "/api/bills/%",
        "/api/bills/%4",
        "",
        "api",
        "*",
        "/api bills",
    ],
)
def test_a_path_with_two_readings_is_refused(path: str) -> None:
    with pytest.raises(BadRequest):
        canonical_path(path)


@pytest.mark.parametrize(
    ("path", "canonical"),
    [
        ("/api/bills", "/api/bills"),
        ("/api/%62ills", "/api/bills"),
        ("/%61pi/%7euser", "/api/~user"),
        ("/api/bills/a%20b", "/api/bills/a%20b"),
        ("/api/bills/%e2%82%ac", "/api/bills/%E2%82%AC"),
        ("/api/bills/...", "/api/bills/..."),
        ("/api/bills/a..b", "/api/bills/a..b"),
        ("/api/bills/", "/api/bills/"),
        ("/api/bills/%252e%252e", "/api/bills/%252e%252e"),
    ],
)
def test_one_path_has_one_spelling(path: str, canonical: str) -> None:
    assert canonical_path(path) == canonical


def test_an_encoded_letter_does_not_lead_around_a_stricter_route() -> None:
    table = RouteTable([BILLS, ADMIN])
    assert table.find(canonical_path("/api/bills/%61dmin")) == (ADMIN,)


@given(st.text(alphabet="/.%2eEfF5cC0abdminA;~\\", max_size=30))
def test_what_is_let_through_is_let_through_unchanged(rest: str) -> None:
    try:
        path = canonical_path("/" + rest)
    except BadRequest:
        return
    assert canonical_path(path) == path
    assert not {"", ".", ".."} & set(path[1:].split("/")[:-1])
