"""Routes as text: what is written is read back, and what is wrong is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from microkit.errors import ConfigurationError, DefinitionError
from microkit.gateway import Route
from microkit.gateway.filters import (
    KINDS,
    ApiKey,
    ApiKeys,
    CircuitBreaker,
    Compress,
    Cors,
    Fallback,
    RateLimit,
    RedirectToCdn,
    RequestHeaders,
    ResponseCache,
    ResponseHeaders,
    Retry,
    RewritePath,
    RewriteRequestJson,
    RewriteResponseJson,
    SizeLimit,
    StripPrefix,
    TimeLimit,
)
from microkit.gateway.routes_file import from_data, read_routes, to_data

EACH = (
    ApiKeys(keys=(ApiKey("acme", "0" * 64, roles=("member",), scopes=("bills",)),), required=False),
    CircuitBreaker(failures=3),
    Compress(level=1),
    Cors(origins=("https://shop.example",), credentials=True),
    Fallback(body={"bills": []}),
    RateLimit("60/m burst=20", by="address", away="local"),
    RedirectToCdn("https://cdn.example", paths=("*.js",)),
    RequestHeaders(set={"X-Channel": "web"}),
    ResponseCache(default=5.0),
    ResponseHeaders(remove=("X-Powered-By",)),
    Retry(attempts=2, keyed=True),
    RewritePath(r"/a/(\d+)", r"/b/\1"),
    RewriteRequestJson(set={"source": {"name": "web"}}),
    RewriteResponseJson(remove=("secret",)),
    SizeLimit(request=10),
    StripPrefix("/v1"),
    TimeLimit(2.5),
)

ROUTE = Route(
    "/api/bills",
    "billing",
    strip_prefix="/api",
    allow=("member", "admin"),
    methods=("GET", "POST"),
    timeout=3.0,
    body_limit=1000,
    host="*.shop.example",
    headers={"X-Ring": "beta*"},
    query={"v": "*"},
    version="2",
    weight=3,
    scopes=("bills",),
    websocket=True,
    filters=EACH,
)


def test_every_kind_of_filter_is_written_and_read_back() -> None:
    assert {one.kind for one in EACH} == set(KINDS)
    written = orjson.dumps(to_data([ROUTE, Route("/x", "y")]))
    assert from_data(orjson.loads(written)) == (ROUTE, Route("/x", "y"))


def test_what_is_as_usual_is_not_written() -> None:
    assert to_data([Route("/x", "y", filters=(Retry(),))]) == [
        {"prefix": "/x", "service": "y", "filters": [{"kind": "retry"}]}
    ]


def test_toml_and_json_say_the_same(tmp_path: Path) -> None:
    toml, json = tmp_path / "routes.toml", tmp_path / "routes.json"
    toml.write_text(
        '[[routes]]\nprefix = "/a"\nservice = "b"\nallow = "member"\n'
        'filters = [{ kind = "rate-limit", limit = "60/m burst=20" }]\n'
    )
    json.write_bytes(orjson.dumps(to_data(read_routes(toml))))
    assert read_routes(json) == read_routes(toml)
    assert read_routes(toml)[0].filters == (RateLimit("60/m burst=20"),)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({}, "no list of routes"),
        ([1], r"routes\[0\] is no route"),
        ([{"prefix": "/a"}], r"routes\[0\]\.service: Field required"),
        ([{"prefix": "/a", "service": "b", "wieght": 1}], r"routes\[0\] has wieght"),
        ([{"prefix": "/a", "service": "b", "timeout": "soon"}], r"routes\[0\]\.timeout"),
        ([{"prefix": "/a", "service": "b", "filters": {}}], r"filters is no list"),
        ([{"prefix": "/a", "service": "b", "filters": [{"kind": "magic"}]}], "'magic' is no kind of filter"),
        ([{"prefix": "/a", "service": "b", "filters": [{"kind": "retry", "tries": 2}]}], "retry has no tries"),
        ([{"prefix": "/a", "service": "b", "filters": [{"kind": "rate-limit"}]}], r"filters\[0\]\.limit: Field"),
    ],
)
def test_what_describes_no_routes_is_refused_with_its_place(data: Any, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        from_data(data)


def test_routes_that_cannot_work_are_refused_as_in_code(tmp_path: Path) -> None:
    with pytest.raises(DefinitionError, match="same methods"):
        from_data([{"prefix": "/a", "service": "b"}, {"prefix": "/a", "service": "c"}])
    with pytest.raises(DefinitionError, match="'\\*' with credentials"):
        cors = {"kind": "cors", "origins": ["*"], "credentials": True}
        from_data([{"prefix": "/a", "service": "b", "filters": [cors]}])
    with pytest.raises(ConfigurationError, match=r"cannot be read from .*none\.toml"):
        read_routes(tmp_path / "none.toml")
