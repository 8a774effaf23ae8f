"""Listeners of Kafka brokers that will not have us: as much of the protocol as a client sees before it gives up.

Answers are those of the brokers: Kafka closes a connection whose request is too long to be one, and one on which it is
asked something by a client that should have said who it is.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from struct import pack, unpack

_METADATA, _HANDSHAKE, _VERSIONS, _AUTHENTICATE = 3, 17, 18, 36
_LONGEST = 100 * 1024 * 1024

OLD = {0: 2, 1: 3, 2: 1, 3: 2, 8: 2, 9: 2, 10: 0, 11: 1, 12: 0, 13: 0, 14: 0, 17: 0, 18: 0, 19: 1}
"""What Kafka 0.10.2 speaks: requests and their newest versions."""
NEW = {**OLD, 0: 9, 1: 11, 2: 5, 8: 8, 9: 8, 17: 1, 18: 3, 19: 7, 22: 4, 32: 2, 36: 2}


@dataclass
class Listener:
    """``hangs_up_at`` is the request at which it closes the connection. ``mechanism`` is the one that it has; with
    PLAIN each password is wrong."""

    speaks: Mapping[int, int] = field(default_factory=lambda: NEW)
    hangs_up_at: int | None = None
    mechanism: str = "PLAIN"
    port: int = 0
    open: set[asyncio.StreamWriter] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open.add(writer)
        with suppress(asyncio.IncompleteReadError, OSError):
            while (length := unpack(">i", await reader.readexactly(4))[0]) <= _LONGEST:
                key, version, number = unpack(">hhi", (await reader.readexactly(length))[:8])
                if key == self.hangs_up_at:
                    break
                answer = pack(">i", number) + self.answer(key, version)
                writer.write(pack(">i", len(answer)) + answer)
        self.open.discard(writer)
        writer.close()

    def answer(self, key: int, version: int) -> bytes:
        if key == _VERSIONS:
            return self.versions(version)
        if key == _HANDSHAKE:
            refused = 0 if self.mechanism == "PLAIN" else 33
            return pack(">hih", refused, 1, len(self.mechanism)) + self.mechanism.encode()
        if key == _AUTHENTICATE:
            why = b"Authentication failed: Invalid username or password"
            return pack(">hh", 58, len(why)) + why + pack(">iq", 0, 0)[: 12 if version else 4]
        if key == _METADATA:  # one broker, which is the controller, and no topic
            host = b"127.0.0.1"
            return pack(">iih", 1, 1, len(host)) + host + pack(">ihhii", self.port, -1, -1, 1, 0)
        raise OSError(f"nobody answers {key}")

    def versions(self, version: int) -> bytes:
        newest = self.speaks[_VERSIONS]
        if version > newest:  # answered as the first version, so that whoever asks can read it
            return pack(">hi", 35, len(self.speaks)) + b"".join(
                pack(">hhh", key, 0, most) for key, most in self.speaks.items()
            )
        if version < 3:
            return pack(">hi", 0, len(self.speaks)) + b"".join(
                pack(">hhh", key, 0, most) for key, most in self.speaks.items()
            )
        each = b"".join(pack(">hhhb", key, 0, most, 0) for key, most in self.speaks.items())
        return pack(">hb", 0, len(self.speaks) + 1) + each + pack(">ib", 0, 0)


@asynccontextmanager
async def listening(listener: Listener, secure: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """Where it listens: ``127.0.0.1:port``."""
    server = await asyncio.start_server(listener.serve, "127.0.0.1", 0, ssl=secure)
    listener.port = server.sockets[0].getsockname()[1]
    try:
        yield f"127.0.0.1:{listener.port}"
    finally:
        server.close()
        for writer in list(listener.open):
            writer.transport.abort()
        await server.wait_closed()
