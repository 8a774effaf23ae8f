"""What passes of a request's headers, and whose word about the client is taken."""

from __future__ import annotations

import pytest

from microkit.errors import BadRequest, ConfigurationError
from microkit.gateway.headers import body_length, forwarded_headers, returned_headers
from microkit.proxies import ClientAddress, Proxies

HOST = (b"host", b"shop.example")


def forwarded(*headers: tuple[bytes, bytes]) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in forwarded_headers(headers)}


@pytest.mark.parametrize(
    "name",
    [
        b"x-forwarded-for",
        b"x-forwarded-anything",
        b"x-user-id",
        b"x-user-roles",
        b"x-internal-secret",
        b"x_user_id",
        b"x_forwarded_for",
        b"x-internal_secret",
        b"forwarded",
        b"x-real-ip",
        b"x-request-id",
        b"traceparent",
        b"tracestate",
        b"request-timeout-ms",
        b"request_timeout_ms",
        b"request-priority",
        b"request_priority",
        b"connection",
        b"keep-alive",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"proxy-authorization",
        b"proxy-connection",
        b"expect",
        b"host",
        b"content-length",
    ],
)
def test_a_header_that_is_the_gateways_own_or_ends_here_does_not_pass(name: bytes) -> None:
    assert forwarded((name, b"1"), (b"accept", b"*/*")) == {"accept": "*/*"}


def test_each_header_that_connection_names_ends_here() -> None:
    passed = forwarded(
        (b"connection", b"close, X-Secret"), (b"connection", b"x-other"), (b"x-secret", b"1"), (b"x-other", b"2")
    )
    assert passed == {}


def test_repeated_headers_and_utf8_pass_in_their_order() -> None:
    passed = forwarded_headers([(b"accept", b"a"), (b"cookie", "näm=ü".encode()), (b"accept", b"b")])
    assert passed == [(b"accept", b"a"), (b"cookie", "näm=ü".encode()), (b"accept", b"b")]


def test_a_header_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(BadRequest, match="not UTF-8"):
        forwarded((b"x-name", b"\xff"))


@pytest.mark.parametrize(
    "headers",
    [
        [(b"content-length", b"4"), (b"transfer-encoding", b"chunked")],
        [(b"content-length", b"4"), (b"content-length", b"4")],
        [(b"content-length", b"+4")],
        [(b"content-length", b"-4")],
        [(b"content-length", b"4, 4")],
        [(b"content-length", b"0x4")],
        [(b"content-length", b"9" * 30)],
        [(b"content-length", b"")],
        [HOST, HOST],
    ],
)
def test_a_request_whose_end_is_ambiguous_is_refused(headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(BadRequest):
        body_length(headers)


def test_the_length_of_the_body_is_known_before_it_is_read() -> None:
    assert body_length([HOST]) == 0
    assert body_length([HOST, (b"content-length", b"12")]) == 12
    assert body_length([HOST, (b"transfer-encoding", b"chunked")]) is None


def test_an_answers_hop_by_hop_headers_end_here_and_the_rest_passes() -> None:
    returned = returned_headers(
        [
            (b"content-type", b"text/plain"),
            (b"set-cookie", b"a=1"),
            (b"set-cookie", b"b=2"),
            (b"connection", b"X-Internal-Hint"),
            (b"x-internal-hint", b"1"),
            (b"transfer-encoding", b"chunked"),
            (b"server", b"upstream"),
            (b"date", b"Thu, 01 Jan 1970 00:00:00 GMT"),
        ]
    )
    assert returned == [(b"content-type", b"text/plain"), (b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")]


def test_without_trusted_proxies_the_connection_says_who_calls() -> None:
    headers = [HOST, (b"x-forwarded-for", b"1.2.3.4"), (b"x-forwarded-proto", b"https")]
    assert Proxies([]).client("9.9.9.9", "http", headers) == ClientAddress("9.9.9.9", "http", "shop.example")


@pytest.mark.parametrize(
    ("forwarded_for", "client"),
    [
        (b"1.2.3.4", "1.2.3.4"),
        (b"6.6.6.6, 1.2.3.4", "1.2.3.4"),
        (b"6.6.6.6, 1.2.3.4, 10.0.0.2", "1.2.3.4"),
        (b"6.6.6.6, 1.2.3.4:5555, 10.0.0.2", "1.2.3.4"),
        (b"[2001:db8::7]:443", "2001:db8::7"),
        (b"2001:db8::7", "2001:db8::7"),
        (b"1.2.3.4, evil, 10.0.0.2", "10.0.0.2"),
        (b"10.0.0.2, 10.0.0.3", "10.0.0.2"),
        (b"", "10.0.0.1"),
    ],
)
def test_forwarded_for_counts_from_the_right(forwarded_for: bytes, client: str) -> None:
    proxies = Proxies(["10.0.0.0/8"])
    assert proxies.client("10.0.0.1", "http", [HOST, (b"x-forwarded-for", forwarded_for)]).address == client


def test_several_forwarded_for_headers_are_one_chain() -> None:
    headers = [(b"x-forwarded-for", b"6.6.6.6"), (b"x-forwarded-for", b"1.2.3.4")]
    assert Proxies(["10.0.0.1"]).client("10.0.0.1", "http", headers).address == "1.2.3.4"


def test_a_trusted_proxy_tells_scheme_and_host() -> None:
    headers = [HOST, (b"x-forwarded-proto", b"https"), (b"x-forwarded-host", b"front.example")]
    assert Proxies(["10.0.0.1"]).client("10.0.0.1", "http", headers) == ClientAddress(
        "10.0.0.1", "https", "front.example"
    )
    nonsense = [HOST, (b"x-forwarded-proto", b"javascript"), (b"x-forwarded-host", b"a\r\nb")]
    assert Proxies(["*"]).client("10.0.0.1", "http", nonsense) == ClientAddress("10.0.0.1", "http", "shop.example")


def test_of_two_forwarded_hosts_the_proxys_own_counts() -> None:
    headers = [HOST, (b"x-forwarded-host", b"evil.example"), (b"x-forwarded-host", b"front.example")]
    headers += [(b"x-forwarded-proto", b"http"), (b"x-forwarded-proto", b"https")]
    assert Proxies(["10.0.0.1"]).client("10.0.0.1", "http", headers) == ClientAddress(
        "10.0.0.1", "https", "front.example"
    )


def test_a_wrong_trusted_proxy_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"trusted_proxies: 'proxy\.local'"):
        Proxies(["proxy.local"])
