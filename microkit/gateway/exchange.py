"""One request on its way through a gateway, and its answer on the way back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Final

from microkit.auth.principal import ANONYMOUS, Principal
from microkit.errors import BodyTooLarge
from microkit.gateway.body import RequestBody
from microkit.proxies import ClientAddress

Headers = list[tuple[bytes, bytes]]

_NO_BODY: Final = frozenset({204, 304})


class Answer:
    """What goes back. The body is ``body``, or comes in ``pieces``; ``close`` must be called where they are not read to
    their end. ``headers`` have lower-case names and no length: that is set when it is sent."""

    __slots__ = ("body", "close", "headers", "length", "pieces", "status")

    def __init__(
        self,
        status: int,
        headers: Headers,
        body: bytes = b"",
        pieces: AsyncIterator[bytes] | None = None,
        length: int | None = None,
        close: Callable[[], None] | None = None,
    ) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self.pieces = pieces
        self.length = length
        """What the head says of a streamed body, ``None`` where it is not known."""
        self.close = close

    @property
    def empty(self) -> bool:
        """Whether no body belongs to it."""
        return self.status in _NO_BODY

    def header(self, name: bytes) -> bytes | None:
        """The first header of this name, lower case."""
        for found, value in self.headers:
            if found == name:
                return value
        return None

    def all(self, name: bytes) -> str:
        """All values of a list header, one after the other."""
        return ", ".join(value.decode("latin-1") for found, value in self.headers if found == name)

    def set(self, name: bytes, value: bytes) -> None:
        """Puts a header in the place of those of its name."""
        self.headers = [pair for pair in self.headers if pair[0] != name]
        self.headers.append((name, value))

    def vary(self, name: str) -> None:
        """Notes that the answer depends on a request's header."""
        known = self.all(b"vary")
        if name.lower() not in {one.strip().lower() for one in known.split(",")} and known.strip() != "*":
            self.set(b"vary", f"{known}, {name}".removeprefix(", ").encode())

    async def whole(self, limit: int) -> bytes | None:
        """The whole body where it has at most ``limit`` bytes, else ``None``: then ``pieces`` still gives all of it."""
        if self.pieces is None:
            return self.body if len(self.body) <= limit else None
        if self.length is not None and self.length > limit:
            return None
        found: list[bytes] = []
        size = 0
        rest = self.pieces
        async for piece in rest:
            found.append(piece)
            size += len(piece)
            if size > limit:
                self.pieces = _again(found, rest)
                return None
        self.body, self.pieces = b"".join(found), None
        return self.body


async def _again(read: list[bytes], rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    for piece in read:
        yield piece
    async for piece in rest:
        yield piece


class Exchange:
    """A request as filters see it.

    ``path`` is the public path in its one spelling, ``target`` the path to ask the service for, ``query`` what follows.
    ``headers`` go on to the service; ``asked`` holds the client's own by lower-case name. ``service`` is who will be
    asked. ``timeout`` is in seconds. ``body`` is the client's, ``None`` where it has none.
    """

    # What few requests change: no write for each of them.
    principal: Principal = ANONYMOUS
    key = ""
    """The name of the API key that was sent, if any."""
    token: str | None = None
    """The access token that was sent, if any."""
    attempts = 1
    """How often a repeatable request may be sent, with the pause ``backoff`` (seconds) and after answers of the
    statuses ``retry_on``."""
    retry_on: frozenset[int] = frozenset()
    backoff = 0.0
    keyed = False
    """Whether the service answers what comes twice with one ``Idempotency-Key`` as it did the first time."""
    service = ""
    timeout = 0.0
    idle_timeout = 0.0

    def __init__(
        self,
        scope: MutableMapping[str, Any],
        path: str,
        asked: Mapping[bytes, bytes],
        headers: Headers,
        client: ClientAddress,
        body: RequestBody | bytes | None,
    ) -> None:
        self.scope = scope
        self.method: str = scope["method"]
        self.path = path
        self.target = path
        self.query: bytes = scope["query_string"]
        self.asked = asked
        self.headers = headers
        self.client = client
        self.address = client.address
        self.body = body

    @property
    def safe(self) -> bool:
        """Whether the method changes nothing (RFC 9110, 9.2.1)."""
        return self.method in {"GET", "HEAD", "OPTIONS"}

    @property
    def repeatable(self) -> bool:
        """Whether it does no harm to send it twice, as far as its head says: as it goes on to the service, for what
        the client sent may have been taken out."""
        return self.safe or (self.keyed and any(name == b"idempotency-key" for name, _ in self.headers))

    def set(self, name: bytes, value: bytes) -> None:
        """Puts a header, in lower case, in the place of those of its name."""
        self.headers = [pair for pair in self.headers if pair[0] != name]
        self.headers.append((name, value))

    def drop(self, name: bytes) -> None:
        """Takes all headers of the name out."""
        self.headers = [pair for pair in self.headers if pair[0] != name]

    async def read_body(self, limit: int) -> bytes:
        """The whole body.

        Raises:
            BodyTooLarge: it is larger.
            Problem: it does not come in time, or not as announced.
            ClientGone: the client hung up.
        """
        if self.body is None:
            return b""
        if isinstance(self.body, RequestBody):
            self.body = await self.body.whole(limit, self.timeout)
        if len(self.body) > limit:
            raise BodyTooLarge(f"At most {limit} bytes are taken here")
        return self.body


Handler = Callable[[Exchange], Awaitable[Answer]]
"""Answers a request, or raises a :class:`~microkit.errors.Problem`."""
