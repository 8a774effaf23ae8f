"""The gateway behind an nginx: what it is told about clients, and what nginx lets through to it."""

from __future__ import annotations

from typing import Any

import pytest

from microkit.gateway import Gateway, Route
from microkit.gateway.filters import RateLimit

GATEWAY = Gateway(
    [Route("/bills", "billing"), Route("/members", "billing", allow="member"), Route("/smuggled", "user")]
)
LIMITED = Gateway([Route("/bills", "billing", filters=(RateLimit("1/m burst=2", by="address"),))])
TRUSTED = "127.0.0.3"


@pytest.fixture(scope="module")
def behind(open_doors: Any) -> Any:
    """All requests go through the gateway, which trusts nginx, which trusts a balancer."""
    return open_doors(GATEWAY, through=True, gateway_trusts=("127.0.0.1",), nginx_trusts=(TRUSTED,))


@pytest.fixture(scope="module")
def direct(open_doors: Any) -> Any:
    return open_doors(GATEWAY)


def told(*, source: str, doors: Any, headers: str = "") -> dict[str, str]:
    from json import loads  # noqa: PLC0415

    request = f"GET /bills HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n{headers}\r\n"
    data = doors.by_name["nginx"].raw(request.encode(), source=source)
    assert data.startswith(b"HTTP/1.1 200"), data
    body = data[data.index(b"{") : data.rindex(b"}") + 1]
    return dict(loads(body)["headers"])


FORGED = (
    "X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: evil.example\r\n"
    "Forwarded: for=6.6.6.6\r\nX-User-Id: root\r\n"
)


def test_the_services_see_the_clients_address_and_not_the_proxys(behind: Any) -> None:
    headers = told(source="127.0.0.2", doors=behind)
    assert headers["x-forwarded-for"] == "127.0.0.2"
    assert headers["x-forwarded-proto"] == "http"
    assert headers["x-forwarded-host"] == "shop.example"


def test_what_a_client_says_of_itself_counts_for_nothing(behind: Any) -> None:
    headers = told(source="127.0.0.2", doors=behind, headers=FORGED)
    assert headers["x-forwarded-for"] == "127.0.0.2"
    assert headers["x-forwarded-proto"] == "http"
    assert headers["x-forwarded-host"] == "shop.example"
    assert {"forwarded", "x-user-id"}.isdisjoint(headers)


def test_a_trusted_balancers_word_about_the_client_reaches_the_services(behind: Any) -> None:
    headers = told(source=TRUSTED, doors=behind, headers=FORGED)
    assert headers["x-forwarded-for"] == "6.6.6.6"
    assert headers["x-forwarded-proto"] == "https"
    assert headers["x-forwarded-host"] == "evil.example"


@pytest.mark.parametrize("token", [None, "alice"])
def test_who_may_pass_is_the_gateways_business(behind: Any, token: str | None) -> None:
    reply = behind.by_name["nginx"].ask("GET", "/members", [("Authorization", f"Bearer {token}")] if token else [])
    assert reply.status == (200 if token else 401)
    if token:
        assert dict(reply.json["headers"])["x-user-id"] == "user-alice"
    else:
        assert reply.json["detail"], "the gateway's own document"


def test_clients_behind_a_proxy_are_counted_one_by_one(open_doors: Any) -> None:
    doors = open_doors(LIMITED, through=True, gateway_trusts=("127.0.0.1",))
    request = b"GET /bills HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n"
    for source in ("127.0.0.2", "127.0.0.4"):
        answers = [doors.by_name["nginx"].raw(request, source=source)[:12] for _ in range(3)]
        assert answers == [b"HTTP/1.1 200", b"HTTP/1.1 200", b"HTTP/1.1 429"]


SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
CORPUS = [
    b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
    b"Content-Length: 0\r\nContent-Length: 36\r\n\r\n",
    b"Content-Length: 0, 36\r\n\r\n",
    b"Content-Length: +36\r\n\r\n",
    b"Content-Length: 0x24\r\n\r\n",
    b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    b"Transfer-Encoding: identity\r\nContent-Length: 0\r\n\r\n",
    b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
    b"Transfer_Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    b"Transfer-Encoding: chunked\r\n\r\n0x0\r\n\r\n",
    b"Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n",
    b"Transfer-Encoding: chunked\r\n\r\n0;\n\r\n",
    b"Transfer-Encoding: chunked\r\n\r\n1\r\nZZ\r\n0\r\n\r\n",
    b"X-Folded: 1\r\n Content-Length: 36\r\n\r\n",
    b"X: a\x00b\r\n\r\n",
    b"X: a\rContent-Length: 36\r\n\r\n",
    b": x\r\nContent-Length: 36\r\n\r\n",
    b"Connection: close, Content-Length\r\nContent-Length: 36\r\n\r\n",
    b"Expect: 100-continue\r\nContent-Length: 36\r\n\r\n",
    b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n\r\n",
]


@pytest.mark.parametrize("place", ["direct", "behind"])
@pytest.mark.parametrize("attack", CORPUS)
def test_a_request_with_two_readings_changes_nothing_for_the_next_client(
    request: pytest.FixtureRequest, place: str, attack: bytes
) -> None:
    doors = request.getfixturevalue(place)
    front = doors.by_name["nginx"]
    doors.services.seen.clear()
    ending = b"GET /bills/end HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    received = front.raw(b"POST /bills HTTP/1.1\r\nHost: a\r\n" + attack + SMUGGLED + ending)
    answers = received.count(b'"service"')
    # As many as the services saw: nothing went in beside what nginx took for a request and answered to its sender.
    assert len(doors.services.seen) == answers
    for number in range(3):
        reply = front.ask("GET", f"/bills/own-{number}")
        assert (reply.status, reply.json["path"]) == (200, f"/bills/own-{number}")
    assert doors.services.seen[answers:] == [f"/bills/own-{number}" for number in range(3)]
