"""The two bodies of an exchange, passed on piece by piece: the gateway holds one piece of each at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

from microkit.errors import BadRequest, BodyTooLarge, Problem, RequestTimeout

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class ClientGone(Exception):
    """The client has hung up; nobody is left to answer."""


class RequestBody:
    """The client's body, read while it is sent on.

    ``length`` is what ``Content-Length`` promises, ``None`` where the body is chunked. The first piece is read by
    :meth:`begin`, so that a small body is passed on in one piece. ``problem`` is what ended the reading early;
    ``waits_for_client`` is true while the next piece is still to come, and where the wait for it was given up.
    """

    def __init__(self, receive: Receive, *, length: int | None, limit: int) -> None:
        self._receive = receive
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
        """The whole body if it is here already, else its pieces as they come.

        Raises:
            RequestTimeout: nothing of it came ``within`` so many seconds.
        """
        try:
            async with asyncio.timeout(within):
                self._first = await self._next()
        except TimeoutError:
            raise stalled() from None
        return self._first if self.complete else self._pieces()

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
        message = await self._receive()
        self.waits_for_client = False
        if message["type"] == "http.disconnect":
            raise ClientGone
        piece: bytes = message.get("body", b"")
        self._read += len(piece)
        if self._read > self._limit:
            raise BodyTooLarge(f"At most {self._limit} bytes are taken here")
        if self.on_progress is not None:
            self.on_progress()
        if not message.get("more_body", False):
            if self.length is not None and self._read != self.length:
                raise BadRequest(f"The body has {self._read} bytes, Content-Length says {self.length}")
            self.complete = True
            self._ended.set()
        return piece


def stalled() -> RequestTimeout:
    """What a client is told whose body stopped coming: 408. The rest may never come, so the connection ends."""
    return RequestTimeout("The body stopped coming", headers={"connection": "close"})


class WhileClientWaits:
    """``async with WhileClientWaits(receive, body):`` ends the block when the client hangs up: no work is done for
    nobody, and an endless answer ends.

    Raises:
        ClientGone: it has hung up.
    """

    def __init__(self, receive: Receive, body: RequestBody | None) -> None:
        self._receive = receive
        self._body = body
        self._gone = False

    async def __aenter__(self) -> None:
        self._task = _running_task()
        self._watcher = asyncio.create_task(self._watch())

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._watcher.cancel()
        # As asyncio.timeout does it: a cancellation that came from outside as well goes on as one.
        if self._gone and self._task.uncancel() == 0 and kind is asyncio.CancelledError:
            raise ClientGone from None

    async def _watch(self) -> None:
        if self._body is not None:
            await self._body.ended()
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        self._task.cancel()


def _running_task() -> asyncio.Task[object]:
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("an exchange runs in a task")
    return task
