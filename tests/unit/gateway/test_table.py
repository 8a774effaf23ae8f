"""Which of several routes takes a request, and which routes cannot stand beside each other."""

from __future__ import annotations

from collections import Counter

import pytest

from microkit.contract import ANYONE, SIGNED_IN
from microkit.errors import DefinitionError, MethodNotAllowed, NotFound
from microkit.gateway import Route
from microkit.gateway.table import Asked, RouteTable


def asked(
    method: str = "GET", *, host: str = "", headers: dict[str, str] | None = None, query: str = "", caller: str = "me"
) -> Asked:
    named = {name.lower().encode(): value.encode() for name, value in (headers or {}).items()}
    return Asked(method, host, named, query.encode(), caller.encode())


PLAIN = Route("/a", "plain")


def taken(routes: list[Route], request: Asked, path: str = "/a/1") -> str:
    return RouteTable(routes).match(path, request).service


def test_a_route_with_a_predicate_goes_before_the_one_without() -> None:
    routes = [
        PLAIN,
        Route("/a", "host", host="shop.example"),
        Route("/a", "version", version="2"),
        Route("/a", "host-and-version", host="shop.example", version="2"),
        Route("/a", "beta", query={"beta": "*"}, host="shop.example", version="2"),
    ]
    version = {"Api-Version": "2"}
    assert taken(routes, asked()) == "plain"
    assert taken(routes, asked(host="other.example")) == "plain"
    assert taken(routes, asked(host="shop.example")) == "host"
    assert taken(routes, asked(headers=version)) == "version"
    assert taken(routes, asked(host="shop.example", headers=version)) == "host-and-version"
    assert taken(routes, asked(host="shop.example", headers=version, query="x=1&beta=")) == "beta"
    assert taken(routes, asked(headers={"Api-Version": "3"})) == "plain"


def test_a_wildcard_host_takes_what_is_below_it_and_a_named_host_goes_first() -> None:
    routes = [Route("/a", "all", host="*.example"), Route("/a", "shop", host="shop.example")]
    assert taken(routes, asked(host="shop.example")) == "shop"
    assert taken(routes, asked(host="a.b.example")) == "all"
    for host in ("example", "evilexample", ""):
        with pytest.raises(NotFound):
            taken(routes, asked(host=host))


def test_the_beginning_of_a_value_can_be_demanded_and_a_longer_one_goes_first() -> None:
    routes = [PLAIN, Route("/a", "b", headers={"X-Ring": "beta*"}), Route("/a", "b2", headers={"X-Ring": "beta-2*"})]
    assert taken(routes, asked(headers={"X-Ring": "beta-1"})) == "b"
    assert taken(routes, asked(headers={"X-Ring": "beta-21"})) == "b2"
    assert taken(routes, asked(headers={"X-Ring": "prod"})) == "plain"


def test_an_exact_route_takes_its_path_alone() -> None:
    routes = [PLAIN, Route("/a/1", "exact", exact=True)]
    assert taken(routes, asked()) == "exact"
    assert taken(routes, asked(), "/a/1/2") == "plain"


def test_where_the_longest_prefix_demands_more_than_the_request_has_a_shorter_one_takes_it() -> None:
    routes = [PLAIN, Route("/a/1", "other", host="shop.example")]
    assert taken(routes, asked()) == "plain"
    assert taken(routes, asked(host="shop.example")) == "other"


def test_another_method_is_405_with_those_that_are_taken() -> None:
    routes = [Route("/", "site"), Route("/a", "r", methods=("GET", "HEAD")), Route("/a", "w", methods=("POST",))]
    assert taken(routes, asked("POST")) == "w"
    with pytest.raises(MethodNotAllowed) as refused:
        taken(routes, asked("DELETE"))
    assert refused.value.headers == {"Allow": "GET, HEAD, POST"}


def test_weights_share_the_requests_and_one_caller_stays_with_one_side() -> None:
    table = RouteTable([Route("/a", "old", weight=90), Route("/a", "new", weight=10)])
    found = [table.match("/a", asked(caller=f"Bearer {number}")).service for number in range(10_000)]
    assert 800 < Counter(found)["new"] < 1200
    assert found == [table.match("/a", asked(caller=f"Bearer {number}")).service for number in range(10_000)]


@pytest.mark.parametrize(
    ("routes", "named"),
    [
        ([PLAIN, Route("/a", "twin")], ["plain", "twin"]),
        ([PLAIN, Route("/a", "canary", weight=5)], ["plain", "canary"]),
        ([Route("/a", "x", host="s.example"), Route("/a", "y", version="2")], ["x", "y"]),
        ([Route("/a", "x", methods=("GET", "PUT")), Route("/a", "y", methods=("GET", "POST"))], ["x", "y"]),
        ([Route("/a", "x", headers={"X-A": "1"}), Route("/a", "y", headers={"X-B": "1"})], ["x", "y"]),
        ([Route("/a", "x", headers={"X-A": "1"}), Route("/a", "y", headers={"x-a": "1"})], ["x", "y"]),
        ([Route("/a", "x", query={"a": "1"}), Route("/a", "y", methods=("GET",))], ["x", "y"]),
        (
            [
                Route("/a", "x", methods=("GET",)),
                Route("/a", "y", methods=("POST",)),
                Route("/a", "z", methods=("GET", "POST")),
            ],
            ["x", "y", "z"],
        ),
    ],
)
def test_routes_of_which_a_request_could_take_two_or_none_ever_one_are_refused_by_name(
    routes: list[Route], named: list[str]
) -> None:
    with pytest.raises(DefinitionError) as refused:
        RouteTable(routes)
    for name in named:
        assert f"→ {name}" in str(refused.value)


@pytest.mark.parametrize(
    "routes",
    [
        [Route("/a", "x", headers={"X-A": "1"}), Route("/a", "y", headers={"X-A": "2"})],
        [Route("/a", "x", host="a.example"), Route("/a", "y", host="b.example", version="2")],
        [Route("/a", "x", methods=("GET",)), Route("/a", "y", methods=("POST",), query={"a": "1"})],
        [Route("/a", "x", query={"a": "b*"}), Route("/a", "y", query={"a": "c*"})],
        [Route("/a", "x"), Route("/a", "y", exact=True)],
    ],
)
def test_routes_that_no_request_could_take_both_of_stand_beside_each_other(routes: list[Route]) -> None:
    assert len(RouteTable(routes).routes) == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"host": "Shop.Example"}, "no host"),
        ({"host": "shop.example:80"}, "no host"),
        ({"host": "*"}, "no host"),
        ({"methods": ("get",)}, "no method"),
        ({"headers": {"X A": "1"}}, "no header"),
        ({"headers": {"X-A": "1\r\n"}}, "no header"),
        ({"weight": -1}, "weight"),
        ({"scopes": ("bills",), "allow": ANYONE}, "scopes"),
        ({"idle_timeout": 0.0, "allow": SIGNED_IN}, "idle_timeout"),
    ],
)
def test_a_route_that_makes_no_sense_is_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(DefinitionError, match=said):
        Route("/a", "x", **options)  # type: ignore[arg-type]  # wrong on purpose


def test_the_short_way_finds_what_the_long_one_does() -> None:
    routes = [
        Route("/", "all"),
        Route("/a", "plain"),
        Route("/a/b", "read", methods=("GET",)),
        Route("/a/b", "written", methods=("POST",)),
        Route("/a/only", "only", exact=True),
        Route("/a/only", "below"),
        Route("/v", "second", version="2"),
        Route("/c", "half", weight=1),
        Route("/c", "other-half", weight=1),
        Route("/one", "got", methods=("GET",)),
    ]
    with_root, without = RouteTable(routes), RouteTable(routes[1:])
    paths = ["", "/", "/a", "/a/", "/ab", "/a/b", "/a/b/1", "/a/only", "/a/only/1", "/v/1", "/c/1", "/one", "/one/1"]
    short = 0
    for table in (with_root, without):
        for path in [*paths, "/elsewhere/1/2"]:
            for method in ("GET", "POST", "PUT"):
                found = table.by_path(path, method)
                if found is not None:
                    assert found is table.match(path, asked(method))
                    short += 1
    assert short == 34
    assert without.by_path("/elsewhere", "GET") is None
    assert with_root.by_path("/one", "PUT") is None  # it is not that of "/", but 405
