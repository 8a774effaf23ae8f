"""A pooler that lends server connections by the transaction, as strict as one can be: it stands for pgbouncer.

Each transaction is served by the server connection that has rested longest, so no two in a row are the same where
there are several; start-up parameters other than those that pgbouncer tracks are refused, as it refuses them; nothing
is reset between two clients. https://www.pgbouncer.org/features.html
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

_TRACKED = {"user", "database", "client_encoding", "datestyle", "timezone", "standard_conforming_strings",
            "application_name"}  # fmt: skip
_SSL_REQUEST = 80877103
_READY = b"Z"

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Pooler:
    """``lent`` counts how often a server connection was lent; ``refused`` are start-up parameters that it did not take.
    Nobody is asked for a password."""

    def __init__(self, socket: str, size: int) -> None:
        self._socket = socket
        self._size = size
        self._idle: asyncio.Queue[Streams] = asyncio.Queue()
        self._opened: list[Streams] = []
        self._welcome = b""
        self._clients: set[asyncio.Task[None]] = set()
        self.lent = 0
        self.refused: list[str] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        sent: asyncio.Queue[bytes] = asyncio.Queue()
        with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            if await self._greet(reader, writer):
                async with asyncio.TaskGroup() as tasks:
                    lending = tasks.create_task(self._lend_forever(sent, writer))
                    while (message := await _message(reader))[:1] != b"X":
                        sent.put_nowait(message)
                    lending.cancel()
        writer.close()
        self._clients.discard(task)

    async def close(self) -> None:
        for task in tuple(self._clients):
            task.cancel()
        for _, writer in self._opened:
            writer.close()

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        body = await _start_up(reader)
        while struct.unpack("!i", body[:4])[0] == _SSL_REQUEST:
            writer.write(b"N")
            body = await _start_up(reader)
        names = [each.decode() for each in body[4:].split(b"\0")[:-2:2]]
        unknown = [name for name in names if name.lower() not in _TRACKED]
        if unknown:
            self.refused += unknown
            text = f"SERROR\0VERROR\0C08P01\0Munsupported startup parameter: {unknown[0]}\0\0".encode()
            writer.write(b"E" + struct.pack("!i", len(text) + 4) + text)
            return False
        while len(self._opened) < self._size:
            await self._open(body)
        writer.write(self._welcome)
        return True

    async def _open(self, body: bytes) -> None:
        server, to_server = await asyncio.open_unix_connection(self._socket)
        self._opened.append((server, to_server))
        to_server.write(struct.pack("!i", len(body) + 4) + body)
        welcome = b""
        while not (message := await _message(server)).startswith(_READY):
            welcome += message
        self._welcome = welcome + message
        self._idle.put_nowait((server, to_server))

    async def _lend_forever(self, sent: asyncio.Queue[bytes], to_client: asyncio.StreamWriter) -> None:
        while True:
            first = await sent.get()
            server, to_server = await self._idle.get()
            self.lent += 1
            to_server.write(first)
            passing = asyncio.create_task(_pass_on(sent, to_server))
            try:
                while not (message := await _message(server)).startswith(_READY) or message[5:] != b"I":
                    to_client.write(message)
            finally:
                passing.cancel()
            self._idle.put_nowait((server, to_server))  # who asks next waits for this answer first
            to_client.write(message)


async def _pass_on(sent: asyncio.Queue[bytes], to_server: asyncio.StreamWriter) -> None:
    while True:
        to_server.write(await sent.get())


async def _start_up(reader: asyncio.StreamReader) -> bytes:
    (length,) = struct.unpack("!i", await reader.readexactly(4))
    return await reader.readexactly(length - 4)


async def _message(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readexactly(5)
    (length,) = struct.unpack("!i", head[1:])
    return head + await reader.readexactly(length - 4)


@asynccontextmanager
async def pooled(socket: str, size: int) -> AsyncIterator[tuple[Pooler, int]]:
    """The pooler before the server at ``socket``, and the port where it listens."""
    pooler = Pooler(socket, size)
    server = await asyncio.start_server(pooler.serve, "127.0.0.1", 0)
    try:
        yield pooler, server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await pooler.close()
