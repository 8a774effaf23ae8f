"""What else comes on a connection: after a refusal, after the answer, after the client has gone."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from socket import SO_LINGER, SOL_SOCKET
from struct import pack
from typing import Any

import pytest
import uvloop

from microkit.web import Server

pytestmark = pytest.mark.anyio


async def test_a_trailer_does_not_pass_for_a_header(wire: Any, http: Any) -> None:
    head = http.request("POST", "/things/secret", "Transfer-Encoding: chunked")
    answer = await wire(head, b"1\r\n \r\n", b"0\r\nAuthorization: Bearer mine\r\n\r\n")
    assert answer.status == 401


async def test_a_request_after_a_refused_one_on_the_same_connection_is_served(server: Server, http: Any) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(http.post_json(b"[") + http.post_json(b'{"name":"x"}'))
    assert (await http.read_answer(reader)).status == 400
    assert (await http.read_answer(reader)).status == 201
    writer.close()


async def test_an_answer_under_way_comes_before_the_end_of_a_broken_connection(server: Server, http: Any) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(http.post_json(b'{"name":"x"}') + b"nonsense\r\n\r\n")
    answer = await http.read_answer(reader)
    assert answer.status == 201
    assert await asyncio.wait_for(reader.read(), 10) == b""
    writer.close()


async def test_a_connection_whose_body_stops_coming_is_closed_after_the_answer(server: Server, http: Any) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(http.request("POST", "/things/secret", "Content-Length: 900"))
    assert (await http.read_answer(reader)).status == 401

    async def dribble() -> None:
        while True:
            writer.write(b"x")
            await asyncio.sleep(0.05)

    dribbling = asyncio.create_task(dribble())
    assert await asyncio.wait_for(reader.read(), 10) == b""
    dribbling.cancel()
    writer.close()


async def test_a_body_that_comes_after_the_answer_keeps_the_connection(server: Server, http: Any) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(http.request("POST", "/things/secret", "Content-Length: 4"))
    assert (await http.read_answer(reader)).status == 401
    writer.write(b"late")
    await asyncio.sleep(1.0)  # longer than a head may take here
    writer.write(http.post_json(b'{"name":"x"}'))
    assert (await http.read_answer(reader)).status == 201
    writer.close()


def test_an_answer_to_a_client_that_left_in_a_pipeline_is_dropped_by_uvloop_too() -> None:
    """uvloop's transports raise where those of asyncio drop what is written after the end.

    In a process of its own, which ends without closing its loop: uvloop's ``close`` has been seen to hang there.
    """
    code = "from tests.contract.web.test_broken_connections import answer_a_client_that_left as run; run()"
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", code], cwd=root, timeout=60, check=True)


def answer_a_client_that_left() -> None:
    failed: list[Exception] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        came.set()
        await left.wait()
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for _ in range(3):
                await send({"type": "http.response.body", "body": b"for nobody", "more_body": True})
                await asyncio.sleep(0.05)  # writing is how the server learns that the connection is lost
            await send({"type": "http.response.body", "body": b""})
        except RuntimeError as error:
            failed.append(error)
        answered.set()

    async def leave_early() -> None:
        server = Server(app)
        await server.start()
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 2)
        await asyncio.wait_for(came.wait(), 10)
        writer.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, pack("ii", 1, 0))
        writer.transport.abort()  # a reset
        left.set()
        await asyncio.wait_for(answered.wait(), 10)
        await server.stop(5)

    came, left, answered = asyncio.Event(), asyncio.Event(), asyncio.Event()
    uvloop.new_event_loop().run_until_complete(leave_early())
    os._exit(1 if failed else 0)
