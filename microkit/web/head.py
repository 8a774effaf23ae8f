"""What is valid to the parser of a request's head, and ambiguous to others on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from microkit.errors import BadRequest, MethodNotAllowed, Problem
from microkit.request_head import RequestHead
from microkit.web.admission import NO_HOST, headers_too_large, is_host
from microkit.web.limits import Limits

METHODS: Final = {"allow": "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"}


class NotHttp(BadRequest, status=400, title="The request is not well-formed HTTP/1.1"): ...


class VersionNotSupported(Problem, status=505, title="HTTP/1.1 is spoken here"): ...


def read_head(pairs: list[tuple[bytes, bytes]], version: str, limits: Limits) -> RequestHead:
    """The headers of a request.

    Raises:
        Problem: 400, 431 or 505.
    """
    if version == "0.9":
        raise NotHttp("The request line ends without HTTP/1.1")
    if version not in {"1.0", "1.1"}:
        raise VersionNotSupported()
    if sum([len(name) + len(value) for name, value in pairs]) > limits.headers:
        raise headers_too_large(limits)
    head = RequestHead(pairs, version)
    headers = head.named
    host = headers.get(b"host")
    # Where each name is there once, nearly always, the headers by name say it all.
    if (host is None and version == "1.1") or (len(headers) != len(pairs) and len(values(pairs, b"host")) > 1):
        raise NotHttp("One Host header is needed")
    if host is not None and not is_host(host):
        raise NotHttp(NO_HOST)
    if b"transfer-encoding" in headers:
        codings = values(pairs, b"transfer-encoding")
        if version == "1.0" or [coding.lower() for coding in codings] != [b"chunked"]:
            raise NotHttp("The only transfer coding taken is chunked, in HTTP/1.1")
    return head


def check_line(method: bytes, url: bytes, headers: Mapping[bytes, bytes]) -> None:
    """Refuses what only proxies take.

    Raises:
        Problem: 400 or 405.
    """
    if method == b"CONNECT":
        raise MethodNotAllowed(headers=METHODS)
    if b"#" in url or not (url.startswith(b"/") or (url == b"*" and method == b"OPTIONS")):
        _check_absolute(url, headers.get(b"host", b""))


def _check_absolute(url: bytes, host: bytes) -> None:
    """``GET http://host/path`` (RFC 9112, 3.2.2) is taken where it names the host that Host names."""
    scheme, _, rest = url.partition(b"://")
    if scheme.lower() not in {b"http", b"https"} or b"#" in rest or rest.split(b"/", 1)[0].lower() != host.lower():
        raise NotHttp("The request target is neither a path nor a URL of the host that Host names")


def values(pairs: Sequence[tuple[bytes, bytes]], wanted: bytes) -> list[bytes]:
    """All values of one header."""
    return [value for name, value in pairs if name == wanted]
