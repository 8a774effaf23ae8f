"""What is refused before anybody asks where a request wants to go: its size, its path, its host."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import quote

from starlette.types import Scope

from microkit.errors import BadRequest, HeadersTooLarge, MisdirectedRequest, UrlTooLong
from microkit.web.limits import Limits
from microkit.web.target import check_path

READ_WITHIN_LIMITS: Final = "microkit.read_within_limits"
"""A key of the scope: our server has counted the head's bytes while it read them. Its value is the time (a reading of
``time.monotonic()``) when the head was whole, ``None`` where the request then had to wait for one before it on its
connection."""

# host [ ":" port ] (RFC 9110, 7.2), of what names a host in practice: RFC 3986 takes "a,b" and "" as well.
_HOST: Final = re.compile(
    rb"(?:[A-Za-z0-9._~-]{1,255}|\[[0-9A-Fa-f:.]{2,45}(?:%[A-Za-z0-9._~-]{1,32})?\])(?::[0-9]{0,5})?"
)

_ONCE: Final = frozenset(
    {b"host", b"content-length", b"content-type", b"authorization", b"idempotency-key", b"request-timeout-ms"}
)


class Admission:
    """Checks the head of each request against the limits."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._any_host = "*" in limits.allowed_hosts
        self._hosts = frozenset(host.lower() for host in limits.allowed_hosts)
        self._suffixes = tuple(host[1:].lower() for host in limits.allowed_hosts if host.startswith("*."))

    def check(self, scope: Scope, headers: Mapping[bytes, bytes]) -> None:
        """Lets the request pass.

        Raises:
            Problem: 400, 414, 421 or 431, by what is wrong.
        """
        raw_path = scope.get("raw_path")
        if raw_path is None:  # ASGI leaves it optional
            raw_path = quote(scope["path"], safe="/%:@!$&'()*+,;=~-._").encode()
        if READ_WITHIN_LIMITS not in scope:
            self._check_size(scope, headers, raw_path)
            if not is_host(headers.get(b"host", b"unsaid")):
                raise BadRequest(NO_HOST)
        if len(headers) != len(scope["headers"]):
            _check_repetition(scope)
        check_path(raw_path)
        if not self._any_host:
            self._check_host(headers.get(b"host", b""))

    def _check_size(self, scope: Scope, headers: Mapping[bytes, bytes], raw_path: bytes) -> None:
        limits = self._limits
        if len(raw_path) + len(scope["query_string"]) > limits.url:
            raise url_too_long(limits)
        given = scope["headers"]
        if len(headers) == len(given):
            size = sum(map(len, headers)) + sum(map(len, headers.values()))
        else:
            size = sum(len(name) + len(value) for name, value in given)
        if size > limits.headers or len(given) > limits.header_count:
            raise headers_too_large(limits)

    def _check_host(self, host: bytes) -> None:
        name = host.decode("latin-1").lower()
        if not name.endswith("]"):  # an IPv6 address without a port
            before, colon, port = name.rpartition(":")
            if colon and (port.isdigit() or not port):
                name = before
        if name not in self._hosts and not name.endswith(self._suffixes or ("\0",)):
            raise MisdirectedRequest("The Host header names another server")


def _check_repetition(scope: Scope) -> None:
    seen: set[bytes] = set()
    for name, _ in scope["headers"]:
        if name in seen and name in _ONCE:
            raise BadRequest(f"The header {name.decode()} is there more than once")
        seen.add(name)


NO_HOST: Final = "The Host header names no host: write example.com or example.com:8080"


def is_host(value: bytes) -> bool:
    """Whether a Host header's value is a host, with or without a port."""
    return _HOST.fullmatch(value) is not None


def url_too_long(limits: Limits) -> UrlTooLong:
    """414 with the limit."""
    return UrlTooLong(f"At most {limits.url} bytes are taken")


def headers_too_large(limits: Limits) -> HeadersTooLarge:
    """431 with the limits."""
    return HeadersTooLarge(f"At most {limits.header_count} headers of {limits.headers} bytes together are taken")
