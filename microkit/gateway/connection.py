"""One connection to an instance of a service: HTTP/1.1 on httptools' parser, one exchange at a time.

What the gateway needs of a client is little and must be exact: bytes pass as they are, nothing is decoded, decompressed
or followed, and it is known whether a byte of the request has gone out and how an answer ended. aiohttp's client gives
the same at four times the cost (decision 33). The parser is llhttp's, in its strict mode.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import httptools

HEAD_LIMIT: Final = 64 * 1024
"""Bytes of an answer's head."""

WHOLE: Final = 64 * 1024
"""An answer of known size up to this many bytes is taken in whole before its head is sent on, so that one that breaks
off is a 502 and not half an answer."""

_HIGH_WATER: Final = 256 * 1024
_SWITCHING: Final = 101
_LAST_STATUS: Final = 599


class UpstreamError(Exception):
    """An exchange with an instance that failed. ``sent`` is whether any byte of the request may have reached it."""

    sent = True


class NotConnected(UpstreamError):
    """No connection could be made: nothing was sent. ``refused`` is whether that was said, and not waited for."""

    sent = False

    def __init__(self, *, refused: bool) -> None:
        super().__init__("refused" if refused else "no answer")
        self.refused = refused


class NoAnswer(UpstreamError):
    """The connection ended before a byte of the answer came. ``stale`` is whether it had served before: then the server
    may have ended it while nothing was asked."""

    stale = False


class BrokeOff(UpstreamError):
    """The connection ended in the middle of the answer."""


class NotHttp(UpstreamError):
    """What came is no HTTP answer, or its head is too large."""


class Response:
    """An answer, as far as it came. ``length`` is what it announced, ``None`` where it did not."""

    __slots__ = (
        "_connection",
        "begun",
        "buffered",
        "complete",
        "error",
        "headers",
        "length",
        "named",
        "pieces",
        "status",
    )

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.named: dict[bytes, bytes] = {}
        """The headers by name, of one that is there twice the last; once the head is whole."""
        self.length: int | None = None
        self.begun = False
        self.complete = False
        self.pieces: list[bytes] = []
        self.buffered = 0
        self.error: Exception | None = None

    async def piece(self, within: float) -> bytes:
        """The next part of the body, ``b""`` at its end.

        Raises:
            UpstreamError: it broke off.
            TimeoutError: nothing came ``within`` so many seconds.
        """
        while not self.pieces:
            if self.complete:
                return b""
            if self.error is not None:
                raise self.error
            await self._connection.wait(within)
        return self._connection.taken()

    def close(self) -> None:
        """The exchange is over. The connection is used again where the answer was read to its end.

        To say so again does nothing: by then the connection may be another exchange's.
        """
        self._connection.over(self)


class Connection(asyncio.Protocol):
    """``over_with`` is called when an exchange has ended, ``gone_with`` when the connection has."""

    def __init__(self, loop: asyncio.AbstractEventLoop, pool: Owner) -> None:
        self.loop = loop
        self._pool = pool
        self._parser: Any = httptools.HttpResponseParser(self)
        self._answer: Response | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self._headers: list[tuple[bytes, bytes]] = []
        self._head_bytes = 0
        self._unread_bytes = 0
        """Bytes since the head, or since the last of the body; -1 while the bytes under way are of the body."""
        self._wants_body = True
        self._keep_alive = True
        self._paused = self._full = False
        self._until_end = False
        self.transport: Any = None
        self.closed = False
        self.pump: asyncio.Task[None] | None = None
        """What sends the body on while it comes: past the answer's head, where the service begins before its end."""
        self.deadline = 0.0
        self.idle_since = 0.0

    # What the gateway calls.

    def begin(self, head: bytes, *, wants_body: bool) -> Response:
        """Sends the head of a request, and its body where it is small; returns what the answer will be in."""
        self._answer = answer = Response(self)
        self._headers = []
        self._head_bytes = self._unread_bytes = 0
        self._wants_body = wants_body
        self._until_end = False
        self.transport.write(head)
        return answer

    async def write(self, piece: bytes) -> None:
        """Sends a piece of the body, and waits while the instance does not read."""
        if self.closed:
            return  # how the exchange ended is told where its answer is read
        self.transport.write(piece)
        while self._full and not self.closed:
            self._room = self.loop.create_future()
            await self._room

    async def begun(self, answer: Response, within: float) -> None:
        """Until there is enough of the answer to go on with: all of a small one, else its head.

        Raises:
            UpstreamError: it broke off.
            TimeoutError: nothing came ``within`` so many seconds.
        """
        while not answer.complete:
            if answer.error is not None:
                raise answer.error
            if answer.begun and (answer.length is None or answer.length > WHOLE):
                return
            await self.wait(within)

    async def wait(self, within: float) -> None:
        """Until something came. One call at a time.

        Raises:
            TimeoutError: nothing came ``within`` so many seconds.
        """
        self._waiter = waiter = self.loop.create_future()
        self.deadline = self.loop.time() + within
        self._pool.waiting.add(self)
        try:
            await waiter
        finally:
            self._waiter = None
            self._pool.waiting.discard(self)

    def extend(self, within: float) -> None:
        """The wait under way starts anew."""
        self.deadline = self.loop.time() + within

    def fail(self, error: Exception) -> None:
        """The exchange cannot go on, for a reason of the sender's."""
        self._fail(error)

    def expire(self) -> None:
        """The wait has taken too long."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(TimeoutError())

    def taken(self) -> bytes:
        """What came of the body since it was last asked for."""
        answer = self._answer
        assert answer is not None  # noqa: S101  the answer under way asks
        pieces, answer.pieces, answer.buffered = answer.pieces, [], 0
        if self._paused and not self.closed:
            self._paused = False
            self.transport.resume_reading()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def over(self, answer: Response) -> None:
        """The exchange is over, if this is the answer under way."""
        if self._answer is not answer:
            return
        self._answer = None
        pump, self.pump = self.pump, None
        uploading = pump is not None and not pump.done()
        if pump is not None and uploading:
            pump.cancel()
        if answer.complete and self._keep_alive and not uploading and not self.closed:
            if self._paused:  # all of it came before any of it was taken
                self._paused = False
                self.transport.resume_reading()
            self._pool.give_back(self)
        else:
            self.end()

    def end(self) -> None:
        """Closes the connection, without what is still to be read or sent."""
        if not self.closed:
            self.closed = True
            self.transport.abort()

    # What the loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        answer = self._answer
        if answer is None or answer.complete:
            self._keep_alive = False  # bytes nobody asked for: whose answer would they be taken for?
            if answer is None:
                self.end()
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._keep_alive = False
            if not answer.complete:
                self._fail(BrokeOff() if answer.begun else NotHttp())
                self.end()
                return
        self._received(len(data), answer)

    def _received(self, size: int, answer: Response) -> None:
        if not answer.begun:
            self._head_bytes += size
            if self._head_bytes > HEAD_LIMIT:
                self._fail(NotHttp())
                self.end()
            return
        # Chunk extensions and trailers, which nobody reads.
        self._unread_bytes = self._unread_bytes + size if self._unread_bytes >= 0 else 0
        if self._unread_bytes > HEAD_LIMIT and not answer.complete:
            self._fail(BrokeOff())
            self.end()
            return
        waiter = self._waiter
        # A small answer wakes nobody before it is whole.
        ready = answer.complete or answer.length is None or answer.length > WHOLE
        if ready and waiter is not None and not waiter.done():
            waiter.set_result(None)

    def eof_received(self) -> None:
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self._pool.lost(self)
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
        answer = self._answer
        if answer is None or answer.complete:
            return
        if answer.begun and self._until_end and exc is None:
            answer.complete = True
            self._keep_alive = False
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_result(None)
            return
        self._fail(BrokeOff() if answer.begun or self._head_bytes else NoAnswer())

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def _fail(self, error: Exception) -> None:
        answer = self._answer
        if answer is not None and answer.error is None:
            answer.error = error
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # What the parser calls.

    def on_message_begin(self) -> None:
        if self._answer is None or self._answer.complete:
            self._keep_alive = False  # a second answer to one request

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        answer = self._answer
        if answer is None or answer.complete:
            return
        status = self._parser.get_status_code()
        if status < 200:
            if status == _SWITCHING:
                raise NotHttp  # nobody asked for it
            self._headers = []
            return
        if status > _LAST_STATUS:
            raise NotHttp
        answer.status = status
        answer.begun = True
        answer.headers = headers = self._headers
        self._headers = []  # of trailers, which nobody reads
        answer.named = named = dict(headers)
        if b"content-length" in named:
            answer.length = int(named[b"content-length"])
        self._until_end = answer.length is None and b"transfer-encoding" not in named
        if not self._wants_body:
            # The parser knows nothing of HEAD and would wait for the body that the head announces.
            answer.complete = True
            self._keep_alive = self._parser.should_keep_alive() or (
                self._until_end and self._parser.get_http_version() == "1.1" and b"connection" not in named
            )
            self._parser = httptools.HttpResponseParser(self)

    def on_body(self, body: bytes) -> None:
        answer = self._answer
        if answer is None or answer.complete:
            self._keep_alive = False  # a body where there is none: what comes next would be taken for an answer
            return
        self._unread_bytes = -1
        answer.pieces.append(body)
        answer.buffered += len(body)
        if answer.buffered > _HIGH_WATER and not self._paused:
            self._paused = True
            self.transport.pause_reading()

    def on_message_complete(self) -> None:
        answer = self._answer
        if answer is not None and answer.begun and not answer.complete:
            answer.complete = True
            self._keep_alive = self._parser.should_keep_alive()


class Owner:
    """What a connection tells its pool. ``waiting`` are the connections on which somebody waits."""

    waiting: set[Connection]

    def give_back(self, connection: Connection) -> None:
        """It can be used again."""
        raise NotImplementedError

    def lost(self, connection: Connection) -> None:
        """It is gone."""
        raise NotImplementedError
