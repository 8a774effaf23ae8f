"""Connections to services that are used again, on the event loop that ``microkit up`` runs."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from microkit.gateway import Route

pytestmark = pytest.mark.anyio

SIZE = 400_000
UVLOOP = ("asyncio", {"use_uvloop": True})


class Blob:
    """A service in a thread of its own: ``SIZE`` bytes for each request, on connections that stay open. ``sent`` is set
    when the kernel has all of an answer."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.sent = threading.Event()
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * SIZE)
            self._open.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        answer = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % SIZE + bytes(SIZE)
        asked = b""
        try:
            while piece := connection.recv(65536):
                asked += piece
                while b"\r\n\r\n" in asked:
                    _, _, asked = asked.partition(b"\r\n\r\n")
                    connection.sendall(answer)
                    self.sent.set()
        except OSError:
            return

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._open:
            connection.close()


@pytest.fixture
def blob() -> Iterator[Blob]:
    served = Blob()
    yield served
    served.close()


@pytest.mark.parametrize("anyio_backend", [UVLOOP], indirect=False)
async def test_an_answer_that_came_at_once_leaves_a_connection_that_can_be_read(
    blob: Blob, start: Any, anyio_backend: Any
) -> None:
    gateway = await start([Route("/bills", service="billing", timeout=5)], {"billing": blob.url})

    async def ask() -> int:
        async with gateway.client.get(f"{gateway.url}/bills") as response:
            size = len(await response.read())
            assert response.status == 200
            return size

    for _ in range(30):
        blob.sent.clear()
        asked = asyncio.ensure_future(ask())
        while not asked.done() and not blob.sent.is_set():
            await asyncio.sleep(0)
            time.sleep(0.002)  # noqa: ASYNC251  the loop is busy while the answer comes
        assert await asked == SIZE
