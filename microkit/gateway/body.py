"""The two bodies of an exchange, passed on piece by piece: the gateway holds one piece of each at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any, Final

from microkit.errors import BadRequest, BodyTooLarge, Problem, RequestTimeout

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


PATIENCE: Final = 20.0
LEAST_RATE: Final = 500.0
"""Bytes a second that a client must send on average, once it has been waited for ``PATIENCE`` seconds in all (Apache's
``RequestReadTimeout body=20,MinRate=500``). Waiting for a piece has its own bound, which one byte in time meets."""


class ClientGone(Exception):
    """The client has hung up; nobody is left to answer."""


class RequestBody:
    """The client's body, read while it is sent on.

    ``length`` is what ``Content-Length`` promises, ``None`` where the body is chunked. The first piece is read by
    :meth:`begin`, so that a small body is passed on in one piece. ``problem`` is what ended the reading early;
    ``waits_for_client`` is true while the next piece is still to come, and where the wait for it was given up. A body
    that trickles holds a connection to the service for hours: it is ended unless it ``may_trickle``.
    """

    def __init__(self, receive: Receive, *, length: int | None, limit: int, may_trickle: bool = False) -> None:
        self._receive = receive
        self._may_trickle = may_trickle
        self._waited = 0.0
        self._limit = limit
        self._read = 0
        self._first = b""
        self.length = length
        self.complete = False
        self.waits_for_client = False
        self.problem: Problem | ClientGone | None = None
        self.on_progress: Callable[[], None] | None = None
        self._ended = asyncio.Event()
        if length is not None and length > limit:
            raise BodyTooLarge(f"At most {limit} bytes are taken here")

    async def begin(self, within: float) -> bytes | AsyncIterator[bytes]:
        """The whole body if it is here already, else its pieces as they come. To be asked for once.

        Raises:
            RequestTimeout: nothing of it came ``within`` so many seconds.
        """
        try:
            async with asyncio.timeout(within):
                self._first = await self._next()
        except TimeoutError:
            raise stalled() from None
        return self._first if self.complete else self._pieces()

    def limit_to(self, limit: int) -> None:
        """Takes at most so many bytes.

        Raises:
            BodyTooLarge: more are announced, or were read.
        """
        self._limit = min(limit, self._limit)
        if max(self.length or 0, self._read) > self._limit:
            raise BodyTooLarge(f"At most {limit} bytes are taken here")

    async def whole(self, limit: int, within: float) -> bytes:
        """All of it, at most ``limit`` bytes; each piece must come ``within`` so many seconds.

        Raises:
            BodyTooLarge: it is larger.
            RequestTimeout: it stalls.
        """
        self.limit_to(limit)
        found = await self.begin(within)
        if isinstance(found, bytes):
            return found
        pieces: list[bytes] = []
        try:
            while True:
                async with asyncio.timeout(within):
                    pieces.append(await anext(found))
        except StopAsyncIteration:
            return b"".join(pieces)
        except TimeoutError:
            raise stalled() from None

    async def ended(self) -> None:
        """Waits until nothing is left to read."""
        await self._ended.wait()

    async def _pieces(self) -> AsyncIterator[bytes]:
        piece, self._first = self._first, b""
        try:
            yield piece
            while not self.complete:
                yield await self._next()
        except (Problem, ClientGone) as problem:
            self.problem = problem
            raise
        finally:
            self._ended.set()

    async def _next(self) -> bytes:
        self.waits_for_client = True
        began = time.monotonic()
        message = await self._receive()
        self._waited += time.monotonic() - began
        self.waits_for_client = False
        if message["type"] == "http.disconnect":
            raise ClientGone
        piece: bytes = message.get("body", b"")
        self._read += len(piece)
        if self._read > self._limit:
            raise BodyTooLarge(f"At most {self._limit} bytes are taken here")
        if self.on_progress is not None:
            self.on_progress()
        if self._waited > PATIENCE and self._read < LEAST_RATE * self._waited and not self._may_trickle:
            raise stalled()
        if not message.get("more_body", False):
            if self.length is not None and self._read != self.length:
                raise BadRequest(f"The body has {self._read} bytes, Content-Length says {self.length}")
            self.complete = True
            self._ended.set()
        return piece


def stalled() -> RequestTimeout:
    """What a client is told whose body stopped coming: 408. The rest may never come, so the connection ends."""
    return RequestTimeout("The body stopped coming", headers={"connection": "close"})
