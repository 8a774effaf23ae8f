"""Each filter, on a real gateway in front of a real service."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Sequence
from typing import Any

import orjson
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route as Path

from microkit.contract import SIGNED_IN
from microkit.errors import ConfigurationError, DefinitionError
from microkit.gateway import Gateway, Route
from microkit.gateway.filters import (
    ApiKey,
    ApiKeys,
    CircuitBreaker,
    Compress,
    Cors,
    Fallback,
    Filter,
    RateLimit,
    RedirectToCdn,
    RequestHeaders,
    ResponseHeaders,
    Retry,
    RewritePath,
    RewriteRequestJson,
    RewriteResponseJson,
    SizeLimit,
    StripPrefix,
    TimeLimit,
)
from microkit.gateway.filters.api_key import hashed

pytestmark = pytest.mark.anyio

ALICE = {"Authorization": "Bearer alice"}
KEY = "a-key-that-is-long-enough-to-be-one"


class Echo:
    """A service that tells what it was asked, and can be told how to answer."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.answers: list[Response] = []
        self.app = Starlette(
            routes=[Path("/{path:path}", self._echo, methods=["GET", "HEAD", "POST", "PUT", "OPTIONS"])]
        )

    async def _echo(self, request: Request) -> Response:
        body = await request.body()
        said = {
            "path": request.url.path,
            "query": request.url.query,
            "headers": dict(request.headers),
            "body": body.decode(),
        }
        self.asked.append({**said, "method": request.method})
        return self.answers.pop(0) if self.answers else JSONResponse(said)


@pytest.fixture
def echo() -> Echo:
    return Echo()


async def started(start: Any, echo: Any, *filters: Filter, **options: Any) -> Any:
    route = Route("/a", "echo", filters=filters, **options)
    return await start([route], {"echo": echo.app if isinstance(echo, Echo) else echo})


async def get(gateway: Any, path: str = "/a", method: str = "GET", **options: Any) -> tuple[int, Any, Any]:
    async with gateway.client.request(method, gateway.url + path, allow_redirects=False, **options) as response:
        body = await response.read()
        kind = response.headers.get("Content-Type", "")
        return response.status, orjson.loads(body) if "json" in kind and body else body, response.headers


async def test_paths_are_stripped_and_rewritten_and_what_comes_out_has_one_reading(start: Any, echo: Echo) -> None:
    gateway = await started(start, echo, StripPrefix("/a"), RewritePath(r"/people/(.*)", r"/users/\1"))
    assert (await get(gateway, "/a/people/7?x=1"))[1]["path"] == "/users/7"
    assert (await get(gateway, "/a"))[1]["path"] == "/"
    crafted = await started(start, echo, RewritePath(r"/a/(.*)", r"/\1/../admin"))
    assert (await get(crafted, "/a/x"))[0] == 400
    assert len(echo.asked) == 2


async def test_headers_are_added_and_taken_away_both_ways_also_of_refusals(start: Any, echo: Echo) -> None:
    gateway = await started(
        start,
        echo,
        RequestHeaders(set={"X-Channel": "web"}, remove=("Cookie",)),
        ResponseHeaders(set={"X-Frame-Options": "DENY"}, remove=("X-Powered-By",)),
        allow=SIGNED_IN,
    )
    echo.answers.append(JSONResponse({}, headers={"X-Powered-By": "magic"}))
    status, _, headers = await get(gateway, headers={**ALICE, "X-Channel": "forged", "Cookie": "a=1"})
    assert (status, headers["X-Frame-Options"], "X-Powered-By" in headers) == (200, "DENY", False)
    assert echo.asked[0]["headers"]["x-channel"] == "web"
    assert "cookie" not in echo.asked[0]["headers"]
    status, _, headers = await get(gateway)
    assert (status, headers["X-Frame-Options"]) == (401, "DENY")
    for name in ("X-Forwarded-For", "Host", "Content-Length", "Connection"):
        with pytest.raises(DefinitionError, match="own business"):
            RequestHeaders(set={name: "1"})
    with pytest.raises(DefinitionError, match="no header"):
        ResponseHeaders(set={"X-A": "1\r\nX-B: 2"})


async def test_declared_fields_of_requests_are_renamed_removed_and_set(start: Any, echo: Echo) -> None:
    rewrite = RewriteRequestJson(rename={"who.mail": "email"}, remove=("is_admin",), set={"source": "web"}, limit=100)
    gateway = await started(start, echo, rewrite)
    status, answer, _ = await get(gateway, method="POST", json={"who": {"mail": "a@b"}, "is_admin": True})
    assert status == 200
    assert orjson.loads(answer["body"]) == {"who": {"email": "a@b"}, "source": "web"}
    assert answer["headers"]["content-length"] == str(len(answer["body"]))
    for body, kind, expected in (
        (b"[", "application/json", 400),
        (b"{}", "text/plain", 415),
        (b'"' + b"x" * 200 + b'"', "application/json", 413),
    ):
        assert (await get(gateway, method="POST", data=body, headers={"Content-Type": kind}))[0] == expected
    zipped = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    assert (await get(gateway, method="POST", data=gzip.compress(b"{}"), headers=zipped))[0] == 415
    assert (await get(gateway))[0] == 200, "a request without a body passes"


async def test_declared_fields_of_answers_never_pass_unread(start: Any, echo: Echo) -> None:
    gateway = await started(start, echo, RewriteResponseJson(remove=("secret",), rename={"a": "b"}, limit=100))
    echo.answers += [
        JSONResponse([{"a": 1, "secret": 2}, {"c": 3}], headers={"ETag": '"x"'}),
        JSONResponse({"secret": "x" * 200}),
        Response(b"{", media_type="application/json"),
        Response(gzip.compress(b'{"secret": 1}'), media_type="application/json", headers={"Content-Encoding": "gzip"}),
        Response(b"secret", media_type="text/plain"),
        JSONResponse({"detail": "gone"}, 404, media_type="application/problem+json"),
    ]
    status, answer, headers = await get(gateway, headers={"Accept-Encoding": "gzip", "Range": "bytes=0-3"})
    assert (status, answer, "ETag" in headers) == (200, [{"b": 1}, {"c": 3}], False)
    assert echo.asked[0]["headers"]["accept-encoding"] == "identity"
    assert "range" not in echo.asked[0]["headers"]
    assert [(await get(gateway))[0] for _ in range(5)] == [502, 502, 502, 200, 404]


async def test_scopes_are_demanded_of_the_token(start: Any, echo: Echo) -> None:
    gateway = await started(start, echo, allow=SIGNED_IN, scopes=("bills:read",))
    status, problem, headers = await get(gateway, headers=ALICE)
    assert (status, problem["detail"]) == (403, "The token is not for this: it lacks bills:read")
    assert headers["WWW-Authenticate"] == 'Bearer error="insufficient_scope", scope="bills:read"'


async def test_an_api_key_is_as_good_as_its_roles_and_never_passed_on(start: Any, echo: Echo) -> None:
    keys = ApiKeys(keys=(ApiKey("acme", hashed(KEY), roles=("member",), scopes=("bills:read",)),))
    gateway = await started(start, echo, keys, allow="member", scopes=("bills:read",))
    status, answer, _ = await get(gateway, headers={"X-API-Key": KEY})
    assert (status, answer["headers"]["x-user-id"]) == (200, "key:acme")
    assert "x-api-key" not in answer["headers"]
    for headers in ({}, {"X-API-Key": KEY + "x"}, {"X-API-Key": ""}, {"X-API-Key": hashed(KEY)}, ALICE):
        status, _, told = await get(gateway, headers=headers)
        assert (status, told["WWW-Authenticate"]) == (401, "ApiKey")
    other = await started(start, echo, keys, allow="admin")
    assert (await get(other, headers={"X-API-Key": KEY}))[0] == 403
    assert KEY not in repr(keys)
    assert hashed(KEY) not in repr(keys)


async def test_api_keys_may_stand_in_a_setting_and_be_one_way_of_two(start: Any, echo: Echo) -> None:
    stored = {"keys": orjson.dumps({"acme": {"hash": hashed(KEY), "roles": ["member"]}}).decode(), "bad": "{"}
    route = Route("/a", "echo", allow="member", filters=(ApiKeys(setting="keys", required=False),))
    gateway = await start([route], {"echo": echo.app}, setting=stored.__getitem__)
    assert (await get(gateway, headers={"X-API-Key": KEY}))[0] == 200
    assert (await get(gateway, headers=ALICE))[0] == 200
    assert (await get(gateway, headers={"X-API-Key": "wrong", **ALICE}))[0] == 401
    with pytest.raises(ConfigurationError, match="bad holds no API keys"):
        await start([Route("/a", "echo", filters=(ApiKeys(setting="bad"),))], {}, setting=stored.__getitem__)


async def test_each_user_has_a_bucket_and_answers_tell_what_is_left(start: Any, echo: Echo) -> None:
    gateway = await started(start, echo, RateLimit("2/h", by="user", name="use"), allow=SIGNED_IN)
    found = [await get(gateway, headers=ALICE) for _ in range(3)]
    assert [status for status, _, _ in found] == [200, 200, 429]
    assert found[0][2]["RateLimit-Policy"] == '"use";q=2;w=3600'
    assert found[0][2]["RateLimit"].startswith('"use";r=1;t=')
    assert int(found[2][2]["Retry-After"]) > 1000
    assert found[2][2]["RateLimit"].startswith('"use";r=0')
    assert (await get(gateway, headers={"Authorization": "Bearer root"}))[0] == 200, "somebody else's is full"
    assert (await get(gateway))[0] == 401
    assert len(echo.asked) == 3
    assert b'gateway_rate_limited_total{http_route="/a",policy="use"} 1.0' in gateway.telemetry.exposition()


async def test_a_limit_by_address_counts_before_the_token_is_looked_at(start: Any, echo: Echo) -> None:
    gateway = await started(start, echo, RateLimit("2/h", by="address"), allow=SIGNED_IN)
    forged = {"Authorization": "Bearer forged", "X-Forwarded-For": "1.2.3.4"}
    assert [(await get(gateway, headers=forged))[0] for _ in range(3)] == [401, 401, 429]


async def test_buckets_may_be_shared_by_name_and_belong_to_a_key_or_to_all(start: Any, echo: Echo) -> None:
    keys = ApiKeys(keys=(ApiKey("one", hashed(KEY)), ApiKey("two", hashed(KEY + "2"))), required=False)
    routes = [
        Route("/a", "echo", filters=(keys, RateLimit("1/h", by="key", name="shared"))),
        Route("/b", "echo", filters=(keys, RateLimit("1/h", by="key", name="shared"))),
        Route("/all", "echo", filters=(RateLimit("1/h", by="everybody"),)),
    ]
    gateway = await start(routes, {"echo": echo.app})
    one, two = {"X-API-Key": KEY}, {"X-API-Key": KEY + "2"}
    assert [(await get(gateway, path, headers=one))[0] for path in ("/a", "/b")] == [200, 429]
    assert (await get(gateway, "/b", headers=two))[0] == 200
    assert [(await get(gateway, "/all", headers=key))[0] for key in (one, two)] == [200, 429]


async def test_cors_answers_preflights_before_anybody_asks_for_a_token(start: Any, echo: Echo) -> None:
    gateway = await started(start, echo, Cors(origins=("https://shop.example",), credentials=True), allow=SIGNED_IN)
    asked = {"Origin": "https://shop.example", "Access-Control-Request-Method": "PUT"}
    asked["Access-Control-Request-Headers"] = "authorization, content-type"
    status, _, headers = await get(gateway, method="OPTIONS", headers=asked)
    assert (status, headers["Access-Control-Allow-Origin"]) == (204, "https://shop.example")
    assert headers["Access-Control-Allow-Credentials"] == "true"
    for wrong in (
        {"Origin": "https://shop.example.evil.example"},
        {"Origin": "null"},
        {"Origin": "http://shop.example"},
        {"Access-Control-Request-Method": "TRACE"},
        {"Access-Control-Request-Headers": "x-internal-admin"},
    ):
        status, _, headers = await get(gateway, method="OPTIONS", headers={**asked, **wrong})
        assert (status, "Access-Control-Allow-Origin" in headers) == (403, False)
    assert echo.asked == []


async def test_cors_headers_are_the_gateways_alone_and_stand_on_refusals(start: Any, echo: Echo) -> None:
    gateway = await started(start, echo, Cors(origins=("https://shop.example",)), allow=SIGNED_IN)
    echo.answers += [JSONResponse({}, headers={"Access-Control-Allow-Origin": "*"}) for _ in range(2)]
    _, _, headers = await get(gateway, headers={**ALICE, "Origin": "https://shop.example"})
    assert headers.getall("Access-Control-Allow-Origin") == ["https://shop.example"]
    assert "Origin" in headers["Vary"]
    _, _, headers = await get(gateway, headers={**ALICE, "Origin": "https://evil.example"})
    assert "Access-Control-Allow-Origin" not in headers
    status, _, headers = await get(gateway, headers={"Origin": "https://shop.example"})
    assert (status, headers["Access-Control-Allow-Origin"]) == (401, "https://shop.example")


@pytest.mark.parametrize(
    "options",
    [
        {"origins": ("*",), "credentials": True},
        {"origins": ()},
        {"origins": ("https://shop.example/",)},
        {"origins": ("shop.example",)},
        {"origins": ("*", "https://shop.example")},
    ],
)
def test_cors_that_would_open_a_hole_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(DefinitionError, match="cors"):
        Cors(**options)


async def test_assets_are_redirected_to_the_cdn_and_nowhere_else(start: Any, echo: Echo) -> None:
    gateway = await started(start, echo, RedirectToCdn("https://cdn.example/shop", paths=("*.js", "/a/img/*")))
    for path in ("/a/app.js?v=1", "/a/img/x"):
        status, _, headers = await get(gateway, path)
        assert (status, headers["Location"]) == (302, f"https://cdn.example/shop{path}")
    status, _, headers = await get(gateway, "/a/@evil.example/x.js")
    assert headers["Location"] == "https://cdn.example/shop/a/@evil.example/x.js"
    assert (await get(gateway, "/a/app.js", method="POST"))[0] == 200
    assert (await get(gateway, "/a/app.json"))[0] == 200


@pytest.mark.parametrize("chunked", [False, True])
async def test_sizes_are_limited_both_ways(start: Any, echo: Echo, chunked: bool) -> None:
    async def pieces(size: int) -> Any:
        yield b"x" * size

    gateway = await started(start, echo, SizeLimit(request=100, response=10_000))
    assert (await get(gateway, method="POST", data=pieces(100) if chunked else b"x" * 100))[0] == 200
    assert (await get(gateway, method="POST", data=pieces(101) if chunked else b"x" * 101))[0] == 413
    if not chunked:
        echo.answers.append(Response(b"x" * 20_000))
        assert (await get(gateway))[0] == 502


async def test_an_answer_that_is_found_too_large_on_the_way_is_seen_to_be_cut(start: Any) -> None:
    async def endless(_: Request) -> Response:
        async def pieces() -> Any:
            while True:
                yield b"x" * 10_000
                await asyncio.sleep(0.01)

        return StreamingResponse(pieces())

    app = Starlette(routes=[Path("/a", endless)])
    gateway = await start([Route("/a", "echo", answer_limit=50_000)], {"echo": app})
    with pytest.raises(Exception, match=r"payload|closed|complete"):
        await get(gateway)


async def test_answers_are_compressed_once_and_only_where_that_is_wanted(start: Any, echo: Echo) -> None:
    gateway = await started(start, echo, Compress(least=100))
    text = b"lorem ipsum " * 100
    wants = {"Accept-Encoding": "br;q=1, gzip;q=0.5"}
    echo.answers += [
        Response(text, media_type="text/plain", headers={"ETag": '"x"'}),
        StreamingResponse(iter([text, text]), media_type="text/plain"),
        Response(text, media_type="text/plain"),
        Response(text, media_type="text/plain"),
        Response(b"short", media_type="text/plain"),
        Response(text, media_type="image/png"),
        Response(gzip.compress(text), media_type="text/plain", headers={"Content-Encoding": "gzip"}),
        Response(text, media_type="text/plain", headers={"Cache-Control": "no-transform"}),
        StreamingResponse(iter([b"data: 1\n\n" * 100]), media_type="text/event-stream"),
    ]
    _, body, headers = await get(gateway, headers=wants)
    assert (headers["Content-Encoding"], headers["ETag"], headers["Vary"]) == ("gzip", 'W/"x"', "Accept-Encoding")
    assert gzip.decompress(body) == text
    _, body, headers = await get(gateway, headers=wants)
    assert gzip.decompress(body) == text + text
    for accepts in ("identity", "gzip;q=0, *"):
        _, body, headers = await get(gateway, headers={"Accept-Encoding": accepts})
        assert ("Content-Encoding" in headers, body, headers["Vary"]) == (False, text, "Accept-Encoding")
    plain = [await get(gateway, headers=wants) for _ in range(5)]
    assert [headers.get("Content-Encoding") for _, _, headers in plain] == [None, None, "gzip", None, None]
    assert gzip.decompress(plain[2][1]) == text


async def test_a_service_that_takes_longer_than_the_route_allows_is_a_504(start: Any) -> None:
    async def slow(request: Request) -> Response:
        await asyncio.sleep(30)
        return Response()

    gateway = await started(start, Starlette(routes=[Path("/a", slow)]), TimeLimit(0.2))
    assert (await get(gateway))[0] == 504


async def test_safe_requests_are_sent_again_and_unsafe_ones_never(start: Any, echo: Echo) -> None:
    gateway = await started(start, echo, Retry(attempts=3, backoff=0.001))
    echo.answers += [Response(status_code=503), Response(status_code=502)]
    assert (await get(gateway))[0] == 200
    assert len(echo.asked) == 3
    echo.answers += [Response(status_code=503) for _ in range(4)]
    assert (await get(gateway))[0] == 503
    assert len(echo.asked) == 6
    assert (await get(gateway, method="POST", data=b"x"))[0] == 503
    assert len(echo.asked) == 7
    assert b'http_client_retries_total{reason="503",server_address="echo"} 3.0' in gateway.telemetry.exposition()


async def test_an_unsafe_request_with_a_key_is_sent_again_where_its_service_keeps_keys(start: Any, echo: Echo) -> None:
    gateway = await started(start, echo, Retry(attempts=3, backoff=0.001, keyed=True))
    echo.answers += [Response(status_code=503), Response(status_code=502)]
    status, answer, _ = await get(gateway, method="POST", data=b"x", headers={"Idempotency-Key": "k"})
    assert (status, len(echo.asked)) == (200, 3)
    assert {asked["headers"]["idempotency-key"] for asked in echo.asked} == {"k"}
    assert {asked["body"] for asked in echo.asked} == {answer["body"]} != {""}
    echo.answers += [Response(status_code=503) for _ in range(4)]
    assert (await get(gateway, method="POST", data=b"x"))[0] == 503, "without a key nobody knows whether it was done"
    assert len(echo.asked) == 4


async def test_a_failing_service_is_left_alone_and_something_else_is_answered(start: Any, echo: Echo) -> None:
    breaker, fallback = CircuitBreaker(failures=3, reset=60), Fallback(body={"bills": []})
    gateway = await started(start, echo, fallback, breaker)
    echo.answers += [JSONResponse({}, 404)] + [JSONResponse({}, 503) for _ in range(3)]
    found = [await get(gateway) for _ in range(6)]
    assert [status for status, _, _ in found] == [404, 200, 200, 200, 200, 200]
    assert len(echo.asked) == 4, "once it is open nobody is asked"
    assert [headers.get("X-Fallback") for _, _, headers in found] == [None, "1", "1", "1", "1", "1"]
    assert found[-1][1] == {"bills": []}
    assert found[-1][2]["Cache-Control"] == "no-store"
    assert b'gateway_breaker_state{http_route="/a"} 2.0' in gateway.telemetry.exposition()


async def test_another_service_may_stand_in_for_safe_requests(start: Any, echo: Echo) -> None:
    route = Route("/a", "dead", filters=(Fallback(service="echo"),))
    gateway = await start([route], {"dead": ["http://127.0.0.1:1"], "echo": echo.app})
    status, answer, headers = await get(gateway, "/a/7?x=1")
    assert (status, answer["path"], answer["query"], headers["X-Fallback"]) == (200, "/a/7", "x=1", "1")
    assert (await get(gateway, method="POST", data=b"x"))[0] == 502


async def test_filters_for_all_routes_come_before_each_routes_own_and_twice_is_refused(start: Any, echo: Echo) -> None:
    routes = [Route("/a", "echo", filters=(StripPrefix("/v1"),)), Route("/b", "echo")]
    gateway = await start(routes, {"echo": echo.app}, filters=[ResponseHeaders(set={"X-All": "1"})])
    for path in ("/a", "/b"):
        assert (await get(gateway, path))[2]["X-All"] == "1"
    with pytest.raises(DefinitionError, match="the filter retry twice"):
        await start([Route("/a", "echo", filters=(Retry(),))], {}, filters=[Retry()])


def _definitions() -> Sequence[Any]:
    return [
        lambda: StripPrefix("v1"),
        lambda: RewritePath("(", ""),
        RewriteRequestJson,
        lambda: RewriteResponseJson(rename={"a": "b.c"}),
        lambda: RewriteResponseJson(remove=("a..b",)),
        ApiKeys,
        lambda: ApiKey("x", KEY),
        lambda: RateLimit("often"),
        lambda: RateLimit("1/s", by="colour"),  # type: ignore[arg-type]  # wrong on purpose
        lambda: RedirectToCdn("cdn.example"),
        lambda: RedirectToCdn("https://cdn.example", status=200),
        lambda: SizeLimit(response=0),
        lambda: Compress(level=0),
        lambda: TimeLimit(0),
        lambda: Retry(attempts=1),
        lambda: CircuitBreaker(failures=0),
        Fallback,
        lambda: Fallback(body={}, service="x"),
    ]


@pytest.mark.parametrize("number", range(len(_definitions())))
def test_a_filter_that_makes_no_sense_is_refused(number: int) -> None:
    with pytest.raises(DefinitionError):
        _definitions()[number]()


def test_filters_are_data_and_a_gateway_needs_no_connection_to_be_defined() -> None:
    assert Gateway([Route("/a", "b", filters=(Retry(),))]).routes[0].filters == (Retry(),)
