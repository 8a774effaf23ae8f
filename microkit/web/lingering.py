"""The end of a connection, in an order in which the client can read the answer."""

from __future__ import annotations

import asyncio
from typing import Any, Final

LINGER: Final = 1.0
"""Seconds that a client gets to stop sending after an answer that ends its connection."""

_MOST_DISCARDED: Final = 16 * 1024 * 1024


class LingeringTransport:
    """A transport that closes in an order in which the client can read the answer.

    Closing a socket with unread bytes makes TCP send a reset, which takes the answer away from a client that is still
    sending its body. So the sending side is closed first, and what still comes is read and thrown away, for
    :data:`LINGER` seconds at most (nginx calls it lingering close).
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._deaf = False
        self._discarded = 0
        self._end: asyncio.TimerHandle | None = None
        self.write = transport.write
        self.pause_reading = transport.pause_reading
        self.resume_reading = transport.resume_reading
        self.get_extra_info = transport.get_extra_info

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def deafen(self) -> None:
        """What comes from now on is thrown away."""
        self._deaf = True

    def discards(self, size: int) -> bool:
        """Whether bytes that came are to be thrown away."""
        if not self._deaf:
            return False
        self._discarded += size
        if self._discarded > _MOST_DISCARDED:
            self._transport.abort()
        return True

    def is_closing(self) -> bool:
        return self._end is not None or self._transport.is_closing()

    def close(self) -> None:
        """Ends the connection, after what has been written."""
        if self.is_closing():
            return
        if not self._transport.can_write_eof():
            self._transport.close()
            return
        self._deaf = True
        self._end = self._loop.call_later(LINGER, self._transport.abort)
        self._transport.write_eof()
        self._transport.resume_reading()

    def set_protocol(self, protocol: asyncio.Protocol) -> None:
        """Another protocol takes over."""
        self._transport.set_protocol(_UntilTheEnd(protocol, self))

    def lost(self) -> None:
        """The connection is gone. What is still written is dropped: uvicorn tells only the last request of a pipeline,
        and where asyncio's transports take what the others write, uvloop's raise."""
        self.write = _drop
        if self._end is not None:
            self._end.cancel()


class _UntilTheEnd(asyncio.Protocol):
    """The protocol of a WebSocket, which uvicorn puts in the place of HTTP's: it hears nothing after it has closed.
    It would answer what a client goes on to send, on a transport that cannot be written to any more."""

    def __init__(self, protocol: asyncio.Protocol, way_out: LingeringTransport) -> None:
        self._protocol = protocol
        self._way_out = way_out
        self.pause_writing = protocol.pause_writing  # type: ignore[method-assign]  # the very same
        self.resume_writing = protocol.resume_writing  # type: ignore[method-assign]

    def data_received(self, data: bytes) -> None:
        if not self._way_out.discards(len(data)):
            self._protocol.data_received(data)

    def eof_received(self) -> bool | None:
        return self._protocol.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._way_out.lost()
        self._protocol.connection_lost(exc)


def _drop(data: object) -> None:
    """Nobody is left to read it."""
