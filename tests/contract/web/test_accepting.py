"""A server on uvloop, as services have it, whose turns are long: who comes meanwhile is let in."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from contextlib import ExitStack
from typing import Any

import pytest
import uvloop

from microkit.contract import ANYONE
from microkit.telemetry import Telemetry
from microkit.web import InlineRoute, Server, Surface, WebApp
from microkit.web.accepting import Acceptor

CLIENTS = 200


def server() -> Server:
    async def hello() -> str:
        return "hello"

    surface = Surface("door", routes=[InlineRoute("GET", "/hello", hello, ANYONE)])
    return Server(WebApp(surface, telemetry=Telemetry("door", log_level="CRITICAL")))


def knock(port: int, clients: ExitStack) -> socket.socket:
    return clients.enter_context(socket.create_connection(("127.0.0.1", port)))


def test_clients_that_come_in_one_long_turn_of_the_loop_are_all_let_in_within_few() -> None:
    async def turns() -> int:
        made = server()
        await made.start()
        with ExitStack() as clients:
            for _ in range(CLIENTS):  # the loop has its long turn here
                knock(made.port, clients)
            count = 0
            while len(made._state.connections) < CLIENTS:
                await asyncio.sleep(0)
                count += 1
                assert count < 1000
        await made.stop(1)
        return count

    assert uvloop.run(turns()) <= 10, "and not one a turn"


class Short:
    """A listener that cannot accept, because its process has no free descriptor, say, until it can again."""

    def __init__(self, listener: socket.socket, trouble: int) -> None:
        self._listener = listener
        self._trouble = trouble
        self.refusals = 0
        self.full = True

    def accept(self) -> Any:
        if self.full:
            self.refusals += 1
            raise OSError(self._trouble, os.strerror(self._trouble))
        return self._listener.accept()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._listener, name)


@pytest.mark.parametrize("trouble", [errno.EMFILE, errno.EINVAL], ids=["no descriptor", "something else"])
def test_who_cannot_accept_waits_and_goes_on(trouble: int, caplog: pytest.LogCaptureFixture) -> None:
    async def serve() -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setblocking(False)
        short = Short(listener, trouble)
        met: asyncio.Queue[asyncio.Protocol] = asyncio.Queue()

        class Met(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                met.put_nowait(self)
                transport.close()

        acceptor = Acceptor(short, Met)  # type: ignore[arg-type]  # it is one in all but name
        with ExitStack() as clients:
            knock(listener.getsockname()[1], clients)
            while not short.refusals:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.3)
            refusals, short.full = short.refusals, False
            async with asyncio.timeout(30):
                await met.get()
        await acceptor.close()
        return refusals

    assert uvloop.run(serve()) == 1, "it does not ask without end"
    assert f"no connection can be taken for 1 s: {os.strerror(trouble)}" in caplog.text
