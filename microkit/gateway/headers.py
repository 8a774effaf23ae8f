"""What passes the gateway of a request's and an answer's headers, and what it sets itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final

from microkit.errors import BadRequest
from microkit.proxies import RawHeaders

HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""They end at each hop (RFC 9110, 7.6.1)."""

_SET_BY_GATEWAY: Final = frozenset(
    {
        b"content-length",  # set from what is really sent
        b"expect",  # answered by our own server
        b"forwarded",
        b"host",
        b"request-priority",  # a word among the system's services
        b"request-timeout-ms",
        b"traceparent",
        b"tracestate",
        b"x-real-ip",
        b"x-request-id",
    }
)

NOT_FORWARDED: Final = HOP_BY_HOP | _SET_BY_GATEWAY

_NOT_RETURNED: Final = HOP_BY_HOP | {b"content-length", b"date", b"server", b"x-request-id"}
"""The last four are the gateway's own answer to the client."""

_SPOOFABLE: Final = (b"x-forwarded-", b"x-user-", b"x-internal-")

_OVERRIDES: Final = frozenset(
    {
        b"x-http-method",
        b"x-http-method-override",
        b"x-method-override",
        b"x-original-host",
        b"x-original-method",
        b"x-original-url",
        b"x-rewrite-url",
    }
)
"""By these some servers take another path or method than the request line's, by which the route was chosen, the caller
let in and the answer kept."""

_HARMLESS: Final = frozenset({b"keep-alive", b"close"})
"""What ``Connection`` says without naming a header."""

_LONGEST_KNOWN: Final = 64

_USUAL: Final = frozenset(
    {
        b"accept",
        b"accept-encoding",
        b"accept-language",
        b"authorization",
        b"cache-control",
        b"content-type",
        b"cookie",
        b"idempotency-key",
        b"if-none-match",
        b"origin",
        b"referer",
        b"user-agent",
    }
)
"""What most requests have, and :func:`passes` lets pass."""


def passes(name: bytes) -> bool:
    """Whether a header goes on to the service. Servers of the CGI kind read ``X_User_Id`` and ``X-User-Id`` as one."""
    # What is remembered is bounded in bytes too: names are a stranger's choice, and may be as long as a whole head.
    return _judged(name) if len(name) <= _LONGEST_KNOWN else _judged.__wrapped__(name)


@lru_cache(maxsize=4096)
def _judged(name: bytes) -> bool:
    judged = name.replace(b"_", b"-")
    return judged not in NOT_FORWARDED and judged not in _OVERRIDES and not judged.startswith(_SPOOFABLE)


def forwarded_headers(headers: RawHeaders) -> list[tuple[bytes, bytes]]:
    """The request's headers that go on to the service, names in lower case as ASGI has them.

    Hop-by-hop headers end here, as does each that ``Connection`` names, and everything by which a client could pose as
    a proxy or as somebody else (also in the spelling ``X_User_Id``, which CGI-style servers read as the same name).

    Raises:
        BadRequest: a value is not UTF-8.
    """
    passed = []
    named: set[bytes] | None = None
    usual = _USUAL
    for pair in headers:
        name, value = pair
        if name in usual or passes(name):
            if not value.isascii():
                _check_utf8(name, value)
            passed.append(pair)
        elif name == b"connection" and value.lower() not in _HARMLESS:
            named = (named or set()) | {part.strip().lower() for part in value.split(b",")}
    return passed if named is None else [pair for pair in passed if pair[0] not in named]


def _check_utf8(name: bytes, value: bytes) -> None:
    try:
        value.decode("utf-8")
    except UnicodeDecodeError:
        raise BadRequest(f"The header {name[:40]!r} is not UTF-8") from None


def joined(headers: RawHeaders) -> dict[bytes, bytes]:
    """The headers by name, the values of one that is there twice in one (RFC 9110, 5.3): what a route, a key or a kept
    answer is chosen by must not be one value where the service takes another."""
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        known = found.get(name)
        found[name] = value if known is None else known + (b"; " if name == b"cookie" else b", ") + value
    return found


def body_length(headers: RawHeaders) -> int | None:
    """How many bytes of body the request announces, ``None`` where it is chunked.

    Raises:
        BadRequest: two readings of where the request ends are possible (RFC 9112, 6.3), or of whom it is for.
    """
    lengths = [value for name, value in headers if name == b"content-length"]
    chunked = any(name == b"transfer-encoding" for name, _ in headers)
    if len(lengths) > 1 or (lengths and chunked):
        raise BadRequest("The body's length is ambiguous: send Content-Length once, or Transfer-Encoding, not both")
    if sum(name == b"host" for name, _ in headers) > 1:
        raise BadRequest("Send one Host header")
    if chunked:
        return None
    if not lengths:
        return 0
    if not lengths[0].isdigit() or len(lengths[0]) > 18:
        raise BadRequest("Content-Length is not a number of bytes")
    return int(lengths[0])


def returned_headers(
    headers: Sequence[tuple[bytes, bytes]], named: Mapping[bytes, bytes] | None = None
) -> list[tuple[bytes, bytes]]:
    """The answer's headers that go back to the client, names in lower case as ASGI wants them and as they come.
    ``named`` are the same by name, where somebody has them."""
    if named is None:
        named = dict(headers)
    ended = _NOT_RETURNED
    returned = [pair for pair in headers if pair[0] not in ended]
    connection = named.get(b"connection")
    if connection is not None and (connection.lower() not in _HARMLESS or len(named) != len(headers)):
        values = [value for name, value in headers if name == b"connection"]
        also = {part.strip().lower() for value in values for part in value.split(b",")}
        returned = [pair for pair in returned if pair[0] not in also]
    return returned
