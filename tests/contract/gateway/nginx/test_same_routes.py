"""One table of requests, sent to the gateway and to an nginx that was rendered from its routes."""

from __future__ import annotations

import base64
import socket
from typing import Any

import pytest

from microkit.contract import SIGNED_IN
from microkit.gateway import Gateway, Route
from microkit.gateway.filters import (
    ApiKey,
    ApiKeys,
    Compress,
    Cors,
    RateLimit,
    RedirectToCdn,
    RequestHeaders,
    ResponseHeaders,
    Retry,
    RewriteRequestJson,
    RewriteResponseJson,
    SizeLimit,
    StripPrefix,
    TimeLimit,
)
from microkit.gateway.filters.api_key import hashed

KEY = "a-key-that-nobody-guesses-0123456789"
NASTY = "quotes \" and ' ; } { $host ${mk_user} \\ # \\n $"
PAGE = "https://shop.example"

GATEWAY = Gateway(
    [
        Route("/api/bills", "billing", strip_prefix="/api"),
        Route("/api/bills/archive", "user", strip_prefix="/api", methods=("GET",)),
        Route("/api/bills/archive", "canary", strip_prefix="/api", methods=("POST", "PUT")),
        Route("/api/reports", "billing", methods=("GET", "HEAD")),
        Route("/exact", "user", exact=True),
        Route("/hosts", "billing"),
        Route("/hosts", "user", host="users.example"),
        Route("/hosts", "news", host="*.news.example"),
        Route("/versions", "billing"),
        Route("/versions", "canary", version="2"),
        Route("/versions", "user", version="2", headers={"X-Beta": "on*"}),
        Route("/asked", "billing", query={"kind": "a b&c"}),
        Route("/asked", "user", query={"kind": "a b&c", "mode": "*"}),
        Route("/shared", "billing", weight=1),
        Route("/shared", "canary", weight=1),
        Route("/members", "billing", allow="member"),
        Route("/admins", "billing", allow="admin"),
        Route("/signed", "billing", allow=SIGNED_IN, scopes=("bills:read",)),
        Route("/stripped", "billing", strip_prefix="/stripped", filters=(StripPrefix("/v1"),)),
        Route(
            "/headers",
            "billing",
            filters=(
                RequestHeaders(set={"X-Channel": NASTY}, remove=("Cookie",)),
                ResponseHeaders(set={"X-Nasty": NASTY}, remove=("X-Powered-By",)),
            ),
        ),
        Route("/small", "billing", body_limit=10),
        Route("/smaller", "billing", filters=(SizeLimit(request=5),)),
        Route("/limited/address", "billing", filters=(RateLimit("1/m burst=3", by="address"),)),
        Route("/limited/user", "billing", allow=SIGNED_IN, filters=(RateLimit("1/m burst=2", by="user"),)),
        Route(
            "/limited/both",
            "billing",
            allow=SIGNED_IN,
            filters=(RateLimit("1/m burst=3", by="address", name="door"), RateLimit("1/m burst=2", by="user")),
        ),
        Route("/limited/key", "billing", filters=(RateLimit("1/m burst=2", by="key"),)),
        Route("/down", "down"),
        Route("/partly", "partly"),
        Route("/hanging", "hanging", timeout=0.5),
        Route("/timed", "hanging", filters=(TimeLimit(0.4),)),
        Route("/half", "half"),
        Route("/dying", "dying"),
        Route("/dying/patient", "dying", filters=(Retry(attempts=3, backoff=0),)),
        Route("/cors", "billing", allow=SIGNED_IN, filters=(Cors(origins=(PAGE,), credentials=True),)),
        Route("/assets", "billing", filters=(RedirectToCdn("https://cdn.example/a$b", paths=("/assets/*.js",)),)),
        Route("/zipped", "billing", strip_prefix="/zipped", filters=(Compress(),)),
        Route("/live", "news", websocket=True, idle_timeout=60, allow="member"),
        Route("/events", "news", idle_timeout=60),
        Route("/keys", "billing", allow=SIGNED_IN, filters=(ApiKeys((ApiKey("acme", hashed(KEY)),), required=False),)),
        Route(
            "/json",
            "billing",
            filters=(RewriteRequestJson(remove=("is_admin",)), RewriteResponseJson(remove=("headers",))),
        ),
        Route("/shop", "billing"),
        Route("/public/shop", "billing", strip_prefix="/public"),
    ],
    filters=(ResponseHeaders(set={"X-Frame-Options": "DENY"}),),
    title="Shop",
)


@pytest.fixture(scope="module")
def doors(open_doors: Any) -> Any:
    return open_doors(GATEWAY, headers=("X-Told",))


@pytest.fixture(params=["microkit", "nginx"])
def front(request: pytest.FixtureRequest, doors: Any) -> Any:
    return doors.by_name[request.param]


def bearer(name: str) -> tuple[str, str]:
    return ("Authorization", f"Bearer {name}")


# method, target, headers → service, path and query that the service sees
TAKEN = [
    ("GET", "/api/bills", (), "billing", "/bills", ""),
    ("GET", "/api/bills/7?x=1&y=%2F", (), "billing", "/bills/7", "x=1&y=%2F"),
    ("DELETE", "/api/bills/7", (), "billing", "/bills/7", ""),
    ("GET", "/api/bills/a%20b/%C3%BC", (), "billing", "/bills/a%20b/%C3%BC", ""),
    ("GET", "/%61pi/bills/%7Eme", (), "billing", "/bills/~me", ""),
    ("GET", "/api/bills/archive", (), "user", "/bills/archive", ""),
    ("POST", "/api/bills/archive/1", (), "canary", "/bills/archive/1", ""),
    ("GET", "http://shop.example/api/bills/7", (), "billing", "/bills/7", ""),
    ("GET", "/exact", (), "user", "/exact", ""),
    ("GET", "/hosts", (), "billing", "/hosts", ""),
    ("GET", "/hosts", (("Host", "Users.Example:8080"),), "user", "/hosts", ""),
    ("GET", "/hosts/x", (("Host", "eu.news.example"),), "news", "/hosts/x", ""),
    ("GET", "/hosts", (("Host", "news.example"),), "billing", "/hosts", ""),
    ("GET", "/versions", (), "billing", "/versions", ""),
    ("GET", "/versions", (("Api-Version", "2"),), "canary", "/versions", ""),
    ("GET", "/versions", (("Api-Version", "22"),), "billing", "/versions", ""),
    ("GET", "/versions", (("Api-Version", "2"), ("X-Beta", "on-1")), "user", "/versions", ""),
    ("GET", "/versions", (("Api-Version", "2"), ("X-Beta", "off")), "canary", "/versions", ""),
    ("GET", "/asked?z=1&kind=a+b%26c", (), "billing", "/asked", "z=1&kind=a+b%26c"),
    ("GET", "/asked?%6bind=a%20b%26c&mode=x", (), "user", "/asked", "%6bind=a%20b%26c&mode=x"),
    ("GET", "/stripped/v1/x", (), "billing", "/x", ""),
    ("GET", "/stripped/v1", (), "billing", "/", ""),
    ("GET", "/stripped/v12", (), "billing", "/v12", ""),
    ("GET", "/members", (bearer("alice"),), "billing", "/members", ""),
    ("GET", "/admins", (bearer("root"),), "billing", "/admins", ""),
    ("GET", "/signed", (bearer("reader"),), "billing", "/signed", ""),
    ("GET", "/keys", (("X-API-Key", KEY),), "billing", "/keys", ""),
    ("GET", "/keys", (bearer("alice"),), "billing", "/keys", ""),
    ("GET", "/assets/logo.png", (), "billing", "/assets/logo.png", ""),
    ("POST", "/assets/app.js", (), "billing", "/assets/app.js", ""),
]


@pytest.mark.parametrize(("method", "target", "headers", "service", "path", "query"), TAKEN)
def test_a_request_reaches_the_same_service_with_the_same_path(
    front: Any, method: str, target: str, headers: Any, service: str, path: str, query: str
) -> None:
    reply = front.ask(method, target, headers, b"" if method == "POST" else None)
    assert reply.status == 200, reply.body
    seen = reply.json
    assert (seen["service"], seen["method"], seen["path"], seen["query"]) == (service, method, path, query)
    assert reply.headers["X-Frame-Options"] == "DENY"
    assert len(reply.headers.get_all("X-Frame-Options")) == 1, "the service's own is taken away"


# method, target, headers, body → status, and headers of the refusal
REFUSED: list[tuple[str, str, Any, bytes | None, int, dict[str, str]]] = [
    ("GET", "/elsewhere", (), None, 404, {}),
    ("GET", "/api/billsx", (), None, 404, {}),
    ("GET", "/exact/below", (), None, 404, {}),
    ("GET", "/asked?kind=a", (), None, 404, {}),
    ("GET", "/.microkit/r0", (), None, 404, {}),
    ("GET", "/.microkit/send/r0", (), None, 404, {}),
    ("GET", "/.microkit/auth/1", (), None, 404, {}),
    ("DELETE", "/api/bills/archive", (), None, 405, {"Allow": "GET, POST, PUT"}),
    ("POST", "/api/reports", (), b"", 405, {"Allow": "GET, HEAD"}),
    ("TRACE", "/api/bills", (), None, 405, {}),
    ("GET", "//admin", (), None, 400, {}),
    ("GET", "/api//bills", (), None, 400, {}),
    ("GET", "/api/bills/%2e%2e/users", (), None, 400, {}),
    ("GET", "/api/bills/%2e%2e%2fusers", (), None, 400, {}),
    ("GET", "/api/bills/../../admins", (), None, 400, {}),
    ("GET", "/api/bills/.;x/7", (), None, 400, {}),
    ("GET", "/%2fadmin", (), None, 400, {}),
    ("GET", "/api/bills/%5c7", (), None, 400, {}),
    ("GET", "/api/bills/%00", (), None, 400, {}),
    ("GET", "/api/bills/%zz", (), None, 400, {}),
    ("GET", "/members", (), None, 401, {"WWW-Authenticate": "Bearer"}),
    ("GET", "/members", (bearer("expired"),), None, 401, {"WWW-Authenticate": 'Bearer error="invalid_token"'}),
    ("GET", "/members", (("Authorization", "Basic alice"),), None, 401, {"WWW-Authenticate": "Bearer"}),
    ("GET", "/members", (bearer("payment"),), None, 403, {}),
    ("GET", "/admins", (bearer("alice"),), None, 403, {}),
    (
        "GET",
        "/signed",
        (bearer("alice"),),
        None,
        403,
        {"WWW-Authenticate": 'Bearer error="insufficient_scope", scope="bills:read"'},
    ),
    ("GET", "/keys", (), None, 401, {}),
    ("GET", "/keys", (("X-API-Key", "another-key-0123456789"),), None, 401, {}),
    ("POST", "/small", (), b"12345678901", 413, {}),
    ("POST", "/small", (("Transfer-Encoding", "chunked"),), b"b\r\n12345678901\r\n0\r\n\r\n", 413, {}),
    ("POST", "/smaller", (), b"123456", 413, {}),
    ("GET", f"/api/bills/{'a' * 9000}", (), None, 414, {}),
    ("GET", "/api/bills", (("X-Large", "a" * 40_000),), None, 431, {}),
    ("GET", "/api/bills?a=b#c", (), None, 400, {}),
    ("GET", "/api/bills", (("Host", "a b"),), None, 400, {}),
    ("GET", "/down", (), None, 502, {}),
    ("POST", "/down", (), b"{}", 502, {}),
    ("GET", "/dying", (), None, 502, {}),
    ("GET", "/hanging", (), None, 504, {}),
    ("GET", "/timed", (), None, 504, {}),
]


@pytest.mark.parametrize(("method", "target", "headers", "body", "status", "told"), REFUSED)
def test_a_refusal_is_the_same_problem_document(
    front: Any, method: str, target: str, headers: Any, body: bytes | None, status: int, told: dict[str, str]
) -> None:
    reply = front.ask(method, target, headers, body)
    assert reply.status == status, reply.body
    assert reply.headers["Content-Type"] == "application/problem+json"
    assert len(reply.headers.get_all("X-Request-ID")) == 1
    problem = reply.json
    assert problem["status"] == status
    assert problem["title"]
    for name, value in told.items():
        assert reply.headers.get_all(name) == [value]


def test_a_client_cannot_pose_as_a_proxy_or_as_somebody_else(front: Any) -> None:
    posed = [
        ("X-Forwarded-For", "6.6.6.6"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "evil.example"),
        ("X-Forwarded-Anything", "1"),
        ("X-Real-IP", "6.6.6.6"),
        ("Forwarded", "for=6.6.6.6"),
        ("X-User-Id", "root"),
        ("X_User_Id", "root"),
        ("X-User-Roles", "admin"),
        ("X-Internal-Admin", "1"),
        ("X-Hop", "1"),
        ("Connection", "close, X-Hop"),
        ("X-Request-ID", "abc-123"),
        ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
        ("X-Told", "passed"),
    ]
    reply = front.ask("GET", "/api/bills", [*posed, bearer("alice")])
    seen = reply.json["headers"]
    headers = dict(seen)
    assert len(seen) == len(headers), "a header arrived twice"
    assert headers["x-forwarded-for"] == "127.0.0.1"
    assert headers["x-forwarded-proto"] == "http"
    assert headers["x-forwarded-host"] == "shop.example"
    assert headers["x-user-id"] == "user-alice"
    assert headers["x-request-id"] == reply.headers["X-Request-ID"] == "abc-123"
    assert headers["traceparent"].split("-")[1] == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert headers["x-told"] == "passed"
    assert {
        "x-user-roles", "x-internal-admin", "x_user_id", "forwarded", "x-real-ip", "x-forwarded-anything", "x-hop"
    }.isdisjoint(headers)  # fmt: skip


@pytest.mark.parametrize("token", [None, "expired"])
def test_on_an_open_route_nobody_is_nobody(front: Any, token: str | None) -> None:
    reply = front.ask("GET", "/api/bills", [("X-User-Id", "root"), *([bearer(token)] if token else [])])
    headers = dict(reply.json["headers"])
    assert "x-user-id" not in headers
    assert headers.get("authorization") == (f"Bearer {token}" if token else None)


def test_headers_are_set_and_taken_away_whatever_they_hold(front: Any) -> None:
    reply = front.ask("GET", "/headers", [("Cookie", "a=b"), ("X-Channel", "mine")])
    headers = dict(reply.json["headers"])
    assert headers["x-channel"] == NASTY
    assert "cookie" not in headers
    assert reply.headers["X-Nasty"] == NASTY
    assert "X-Powered-By" not in reply.headers


@pytest.mark.parametrize(
    ("target", "callers", "passed"),
    [
        ("/limited/address", [()], 3),
        ("/limited/user", [(bearer("alice"),), (bearer("root"),)], 2),
        ("/limited/both", [(bearer("alice"),)], 2),
    ],
)
def test_what_exceeds_a_limit_is_a_429_with_the_time_to_wait(
    front: Any, target: str, callers: Any, passed: int
) -> None:
    for caller in callers:
        for _ in range(passed):
            assert front.ask("GET", target, caller).status == 200
        reply = front.ask("GET", target, caller)
        assert reply.status == 429
        assert reply.json["type"] == "urn:problem:too-many-requests"
        assert 1 <= int(reply.headers["Retry-After"]) <= 60


def test_what_is_counted_by_key_is_counted_by_the_gateway(doors: Any) -> None:
    replies = [doors.by_name["nginx"].ask("GET", "/limited/key") for _ in range(3)]
    assert [reply.status for reply in replies] == [200, 200, 429]
    assert replies[0].headers["RateLimit"]


def test_a_caller_keeps_its_side_of_a_canary_and_both_sides_are_used(front: Any) -> None:
    sides: dict[str, int] = {}
    for number in range(30):
        caller = [("Authorization", f"Basic {number}")]
        first = front.ask("GET", "/shared", caller).json["service"]
        assert front.ask("GET", "/shared", caller).json["service"] == first
        sides[first] = sides.get(first, 0) + 1
    assert sides.keys() == {"billing", "canary"}
    assert min(sides.values()) >= 3


def test_a_dead_instance_is_not_noticed(front: Any) -> None:
    assert {front.ask(method, "/partly", (), b"").status for method in ("GET", "POST") for _ in range(6)} == {200}


def test_half_an_answer_is_never_taken_for_a_whole_one(front: Any) -> None:
    data = front.raw(b"GET /half HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n")
    assert data.startswith((b"HTTP/1.1 502", b"HTTP/1.1 200"))
    if data.startswith(b"HTTP/1.1 200"):
        assert b"Content-Length: 100" in data or b"content-length: 100" in data
        assert not data.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("target", ["/dying/patient", "/dying"])
def test_an_unsafe_request_goes_out_once(doors: Any, front: Any, method: str, target: str) -> None:
    doors.services.died.clear()
    assert front.ask(method, target, (), b"").status in {502, 503}
    assert len(doors.services.died) <= 1


def test_a_preflight_is_answered_before_anybody_asks_for_a_token(front: Any) -> None:
    asked = [("Origin", PAGE), ("Access-Control-Request-Method", "PUT")]
    reply = front.ask("OPTIONS", "/cors", [*asked, ("Access-Control-Request-Headers", "content-type, AUTHORIZATION")])
    assert reply.status == 204
    assert reply.headers["Access-Control-Allow-Origin"] == PAGE
    assert reply.headers["Access-Control-Allow-Credentials"] == "true"
    assert "PUT" in reply.headers["Access-Control-Allow-Methods"]
    assert reply.headers["Access-Control-Max-Age"] == "600"
    for refused in (
        [("Origin", "https://evil.example"), asked[1]],
        [("Origin", f"{PAGE}.evil.example"), asked[1]],
        [asked[0], ("Access-Control-Request-Method", "BREW")],
        [*asked, ("Access-Control-Request-Headers", "X-Anything")],
    ):
        assert front.ask("OPTIONS", "/cors", refused).status == 403


@pytest.mark.parametrize(("origin", "allowed"), [(PAGE, PAGE), ("https://evil.example", None)])
def test_pages_are_told_whether_they_may_read_refusals_too(front: Any, origin: str, allowed: str | None) -> None:
    for token, status in (((), 401), ((bearer("alice"),), 200)):
        reply = front.ask("GET", "/cors", [("Origin", origin), *token])
        assert reply.status == status
        assert reply.headers["Access-Control-Allow-Origin"] == allowed
        assert "Origin" in reply.headers["Vary"]


def test_assets_are_led_to_the_cdn(front: Any) -> None:
    reply = front.ask("GET", "/assets/app.js?v=1")
    assert reply.status == 302
    assert reply.headers["Location"] == "https://cdn.example/a$b/assets/app.js?v=1"
    assert reply.headers["Cache-Control"] == "public, max-age=300"


@pytest.mark.parametrize(
    ("to", "location"),
    [
        ("/bills/7", "/public/bills/7"),
        ("OWN/bills/8", "/public/bills/8"),
        ("https://other.example/x", "https://other.example/x"),
        ("//other.example/x", "//other.example/x"),
    ],
)
def test_redirects_lead_through_the_front_door(front: Any, to: str, location: str) -> None:
    reply = front.ask("GET", f"/public/shop/moved?to={to}")
    assert (reply.status, reply.headers["Location"]) == (307, location)


def test_large_answers_are_compressed_for_who_takes_it(front: Any) -> None:
    assert front.ask("GET", "/zipped/large", [("Accept-Encoding", "gzip")]).headers["Content-Encoding"] == "gzip"
    assert front.ask("GET", "/zipped/large").headers["Content-Encoding"] is None


def test_events_come_one_by_one(front: Any) -> None:
    with socket.create_connection(("127.0.0.1", front.port), 10) as one:
        one.sendall(b"GET /events HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n")
        found = b""
        while b"data: 0" not in found:
            piece = one.recv(65536)
            assert piece
            found += piece
        assert b"data: 2" not in found, "it was kept back"
        while piece := one.recv(65536):
            found += piece
    assert b"data: 2" in found


def upgrade(*headers: str) -> bytes:
    key = base64.b64encode(b"0123456789abcdef").decode()
    lines = [
        "GET /live HTTP/1.1",
        "Host: shop.example",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {key}",
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ((), 401),
        (("Authorization: Bearer alice",), 101),
        (("Authorization: Bearer alice", "Origin: http://shop.example"), 101),
        (("Authorization: Bearer alice", "Origin: https://evil.example"), 403),
    ],
)
def test_websockets_pass_for_who_may(front: Any, headers: tuple[str, ...], status: int) -> None:
    with socket.create_connection(("127.0.0.1", front.port), 10) as one:
        one.sendall(upgrade(*headers))
        head = b""
        while b"\r\n\r\n" not in head:
            piece = one.recv(65536)
            assert piece
            head += piece
        assert head.startswith(f"HTTP/1.1 {status}".encode())
        if status == 101:
            mask = b"\0\0\0\0"
            one.sendall(b"\x81\x85" + mask + b"hello")
            rest = head.partition(b"\r\n\r\n")[2]
            while b"hello" not in rest:
                piece = one.recv(65536)
                assert piece
                rest += piece


def test_what_a_proxy_cannot_do_is_done_by_the_gateway_behind_it(front: Any) -> None:
    reply = front.ask("POST", "/json", [("Content-Type", "application/json")], b'{"is_admin": true, "a": 1}')
    assert reply.status == 200
    assert reply.json["length"] == len(b'{"a":1}')
    assert "headers" not in reply.json
