"""What passes the gateway of a request's and an answer's headers, and what it sets itself."""

from __future__ import annotations

from multidict import CIMultiDict

from microkit.errors import BadRequest
from microkit.proxies import RawHeaders

_HOP_BY_HOP = frozenset(
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

_SET_BY_GATEWAY = frozenset(
    {
        b"content-length",  # set from what is really sent
        b"expect",  # answered by our own server
        b"forwarded",
        b"host",
        b"request-timeout-ms",
        b"traceparent",
        b"tracestate",
        b"x-real-ip",
        b"x-request-id",
    }
)

_NOT_FORWARDED = _HOP_BY_HOP | _SET_BY_GATEWAY

_NOT_RETURNED = _HOP_BY_HOP | {b"date", b"server", b"x-request-id"}
"""The last three are the gateway's own answer to the client."""

_SPOOFABLE = (b"x-forwarded-", b"x-user-", b"x-internal-")


def forwarded_headers(headers: RawHeaders) -> CIMultiDict[str]:
    """The request's headers that go on to the service.

    Hop-by-hop headers end here, as does each that ``Connection`` names, and everything by which a client could pose as
    a proxy or as somebody else (also in the spelling ``X_User_Id``, which CGI-style servers read as the same name).

    Raises:
        BadRequest: a value is not UTF-8.
    """
    passed: CIMultiDict[str] = CIMultiDict()
    named: list[str] = []
    for name, value in headers:
        judged = name.replace(b"_", b"-") if b"_" in name else name
        if judged == b"connection":
            named += [part.strip().decode("ascii", "ignore") for part in value.split(b",")]
        if judged in _NOT_FORWARDED or judged.startswith(_SPOOFABLE):
            continue
        try:
            passed.add(name.decode("ascii"), value.decode("utf-8"))
        except UnicodeDecodeError:
            raise BadRequest(f"The header {name[:40]!r} is not UTF-8") from None
    for name_ in named:
        passed.popall(name_, None)
    return passed


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


def returned_headers(headers: RawHeaders) -> list[tuple[bytes, bytes]]:
    """The answer's headers that go back to the client, names in lower case as ASGI wants them."""
    lowered = [(name.lower(), value) for name, value in headers]
    named = {part.strip().lower() for name, value in lowered if name == b"connection" for part in value.split(b",")}
    dropped = (_NOT_RETURNED | named) if named else _NOT_RETURNED
    return [pair for pair in lowered if pair[0] not in dropped]
