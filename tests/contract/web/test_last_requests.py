"""A server that stops while clients' requests stand unread in the kernel, as they do where the loop is busy."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import pytest
import uvloop

from microkit.contract import ANYONE
from microkit.telemetry import Telemetry
from microkit.web import InlineRoute, Server, Surface, WebApp
from microkit.web.server import listening

REQUEST = b"POST /orders HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"
CLIENTS = 100

both_loops = pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])


def server(*, shared: bool = False) -> Server:
    """``shared``: on a listener that it was given, as workers are."""

    async def order() -> str:
        await asyncio.sleep(0.05)
        return "ordered"

    surface = Surface("shop", routes=[InlineRoute("POST", "/orders", order, ANYONE)])
    return Server(
        WebApp(surface, telemetry=Telemetry("shop", log_level="CRITICAL")),
        listener=listening("127.0.0.1", 0) if shared else None,
    )


async def answer(client: socket.socket) -> bytes:
    client.setblocking(False)
    got = b""
    async with asyncio.timeout(30):
        while piece := await asyncio.get_running_loop().sock_recv(client, 65536):
            got += piece
    return got


def answered(got: bytes) -> bool:
    head, _, body = got.lower().partition(b"\r\n\r\n")
    return head.startswith(b"http/1.1 200") and b"connection: close" in head and body == b'"ordered"'


@pytest.mark.parametrize("shared", [False, True], ids=["alone", "worker"])
@both_loops
def test_who_is_connected_and_not_accepted_yet_is_answered(run: Callable[..., list[bytes]], shared: bool) -> None:
    async def stop_in_the_turn_in_which_they_come() -> list[bytes]:
        made = server(shared=shared)
        await made.start()
        clients = [socket.create_connection(("127.0.0.1", made.port)) for _ in range(CLIENTS)]
        try:
            for client in clients:
                client.sendall(REQUEST)
            await made.stop(10)
            return [await answer(client) for client in clients]
        finally:
            for client in clients:
                client.close()

    answers = run(stop_in_the_turn_in_which_they_come())

    assert [got for got in answers if not answered(got)] == []
    assert len(answers) == CLIENTS


@both_loops
def test_a_request_on_a_kept_connection_that_is_not_read_yet_is_answered(run: Callable[..., bytes]) -> None:
    async def stop_in_the_turn_in_which_it_comes() -> bytes:
        made = server()
        await made.start()
        with socket.create_connection(("127.0.0.1", made.port)) as client:
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(client, REQUEST)
            before = b""
            while not before.endswith(b'"ordered"'):
                before += await loop.sock_recv(client, 65536)
            assert b"connection: close" not in before.lower()
            client.send(REQUEST)
            await made.stop(10)
            return await answer(client)

    assert answered(run(stop_in_the_turn_in_which_it_comes()))
