"""One request on its way to its handler, and what is sent back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from starlette.requests import Request
from starlette.types import Message, Receive, Scope

from microkit.auth.principal import ANONYMOUS, Principal
from microkit.db import Transaction
from microkit.errors import BadRequest, BodyTooLarge, UnsupportedMediaType

HeaderList = list[tuple[bytes, bytes]]

JSON: Final = b"application/json"
_NO_HEADERS: Final[HeaderList] = []
_IDENTITY: Final = frozenset({b"", b"identity"})


class Reply:
    """A whole response. ``headers`` come without the length."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, status: int, headers: HeaderList, body: bytes = b"") -> None:
        self.status = status
        self.headers = headers
        self.body = body


class Call:
    """What a handler's parameters are taken from. It lives as long as its request.

    ``headers`` maps lower-case names to values, as bytes; ``in_path`` holds the path's parameters as text; ``values``
    the operation's parameters, validated; ``token`` the access token as it came; ``body`` the body as it came, once it
    has been read; ``more_headers`` are for the answer, whatever it is. ``waits_for_client`` is true while nothing
    goes on because a body is still to come.
    """

    __slots__ = (
        "_request",
        "body",
        "headers",
        "in_path",
        "limit",
        "more_headers",
        "principal",
        "receive",
        "route",
        "scope",
        "token",
        "transaction",
        "values",
        "waits_for_client",
    )

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        headers: Mapping[bytes, bytes],
        in_path: Mapping[str, Any],
        limit: int,
        token: str | None,
    ) -> None:
        self.scope = scope
        self.receive = receive
        self.headers = headers
        self.in_path = in_path
        self.limit = limit
        self.token = token
        self.principal: Principal = ANONYMOUS
        self.route = ""
        self.transaction: Transaction | None = None
        self.values: dict[str, Any] = {}
        self.body = b""
        self.more_headers: HeaderList = _NO_HEADERS
        self.waits_for_client = False
        self._request: Request | None = None

    @property
    def request(self) -> Request:
        """Starlette's view of the request; its body is bounded like any other."""
        if self._request is None:
            self._request = Request(self.scope, self.receive_within(self.limit))
        return self._request

    @property
    def has_body(self) -> bool:
        """Whether the head announces a body."""
        return self.headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in self.headers

    async def read_body(self) -> bytes:
        """The whole body.

        Raises:
            BodyTooLarge: it is larger than the limit; what is too much is not read.
            UnsupportedMediaType: it is compressed.
            BadRequest: the client left in the middle of it.
        """
        headers = self.headers
        if len(headers.get(b"content-length", b"")) > 4 or b"content-encoding" in headers:
            self._check_head()
        message = await self._next()
        body: bytes = message.get("body", b"")
        if message.get("more_body", False):
            body = await self._read_on(body)
        elif len(body) > self.limit:
            raise _too_large(self.limit)
        self.body = body
        return body

    def _check_head(self) -> None:
        """Refuses by the head alone what would be refused anyway."""
        headers = self.headers
        length = headers.get(b"content-length")
        if length is not None:
            if not length.isdigit():
                raise BadRequest("Content-Length is not a number")
            if len(length) > 18 or int(length) > self.limit:
                raise _too_large(self.limit)
        encoding = headers.get(b"content-encoding")
        if encoding is not None and encoding.lower() not in _IDENTITY:
            raise UnsupportedMediaType(
                "Send the body as it is, without Content-Encoding", headers={"accept-encoding": "identity"}
            )

    async def _read_on(self, first: bytes) -> bytes:
        chunks = [first]
        size = len(first)
        while size <= self.limit:
            message = await self._next()
            chunk = message.get("body", b"")
            size += len(chunk)
            chunks.append(chunk)
            if not message.get("more_body", False):
                break
        if size > self.limit:
            raise _too_large(self.limit)
        return b"".join(chunks)

    async def _next(self) -> Message:
        self.waits_for_client = True
        try:
            message = await self.receive()
        finally:
            self.waits_for_client = False
        if message["type"] != "http.request":
            raise BadRequest("The client left before its request was whole")
        return message

    def receive_within(self, limit: int) -> Receive:
        """The server's ``receive``, which raises :class:`BodyTooLarge` after ``limit`` bytes."""
        self._check_head()
        size, whole = 0, False

        async def receive() -> Message:
            nonlocal size, whole
            self.waits_for_client = not whole  # what comes after the body is only that the client left
            try:
                message = await self.receive()
            finally:
                self.waits_for_client = False
            whole = not message.get("more_body", False)
            size += len(message.get("body", b""))
            if size > limit:
                raise _too_large(limit)
            return message

        return receive


def _too_large(limit: int) -> BodyTooLarge:
    # The rest of the body is not read, so the connection cannot be used again.
    return BodyTooLarge(f"At most {limit} bytes are taken", headers={"connection": "close"})
