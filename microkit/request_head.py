"""The headers of a request as the server read them, once for all requests of a connection that send the same.

Clients that keep a connection mostly do: what was found out about the headers of one request holds for the next.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any, Final

RawHeaders = list[tuple[bytes, bytes]]

_KEY: Final = "microkit.request_head"


class RequestHead:
    """``headers`` as they came, ``named`` the same by name, of one that is there twice the last.

    ``token`` is the access token in it, if any. Nobody may change them. ``known`` holds what others found out about
    them, by who it was.
    """

    __slots__ = ("headers", "known", "named", "token", "version")

    def __init__(self, headers: RawHeaders, version: str) -> None:
        self.headers = list(headers)
        self.named = dict(headers)
        self.token = bearer(self.named.get(b"authorization"))
        self.version = version
        self.known: dict[object, Any] = {}

    def put(self, scope: MutableMapping[str, Any]) -> None:
        """Leaves it in an ASGI scope."""
        scope[_KEY] = self


def head_of(scope: Mapping[str, Any]) -> RequestHead:
    """That of a request; a new one where another server read it, or the headers were changed on the way."""
    headers: RawHeaders = scope["headers"]
    found: RequestHead | None = scope.get(_KEY)
    if found is not None and found.headers == headers:
        return found
    return RequestHead(headers, scope.get("http_version", "1.1"))


def bearer(authorization: bytes | None) -> str | None:
    """The token in an ``Authorization`` header, ``None`` without one (RFC 6750)."""
    if authorization is None or authorization[:7].lower() != b"bearer ":
        return None
    return authorization[7:].strip().decode("latin-1") or None
