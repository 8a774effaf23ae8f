"""A whole answer on its way to the transport."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from uvicorn.protocols.http.flow_control import FlowControl

from microkit.web.cycle import Cycle

pytestmark = pytest.mark.anyio


class Transport:
    """Remembers what is written."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    def close(self) -> None:
        self.closed = True


def cycle(method: str = "GET", *, keep_alive: bool = True) -> tuple[Cycle, Transport]:
    transport: Any = Transport()
    log = logging.getLogger("test")
    made = Cycle(
        scope={"type": "http", "method": method},  # type: ignore[typeddict-item]  # what is looked at
        transport=transport,
        flow=FlowControl(transport),
        logger=log,
        access_logger=log,
        access_log=False,
        default_headers=[(b"date", b"today")],
        message_event=asyncio.Event(),
        expect_100_continue=False,
        keep_alive=keep_alive,
        on_response=lambda: None,
    )
    return made, transport


async def test_head_and_body_of_a_small_answer_leave_together() -> None:
    one, transport = cycle()
    await one.send_whole(200, [(b"X-Thing", b"1")], b"hello")
    assert transport.writes == [b"HTTP/1.1 200 OK\r\ndate: today\r\nx-thing: 1\r\ncontent-length: 5\r\n\r\nhello"]
    assert one.response_complete
    assert not transport.closed


async def test_a_large_body_is_not_copied() -> None:
    one, transport = cycle()
    body = b"x" * 100_000
    await one.send_whole(200, [], body)
    assert transport.writes[1] is body


@pytest.mark.parametrize(
    ("method", "status", "length"), [("HEAD", 200, True), ("GET", 304, False), ("GET", 204, False)]
)
async def test_where_no_body_belongs_none_is_sent(method: str, status: int, length: bool) -> None:
    one, transport = cycle(method)
    await one.send_whole(status, [], b"hello")
    (sent,) = transport.writes
    assert sent.endswith(b"\r\n\r\n")
    assert (b"content-length: 5" in sent) is length


async def test_what_closes_the_connection_says_so_once() -> None:
    one, transport = cycle(keep_alive=False)
    await one.send_whole(200, [], b"")
    assert transport.writes[0].count(b"connection: close") == 1
    assert transport.closed
    one, transport = cycle()
    await one.send_whole(200, [(b"connection", b"close")], b"")
    assert transport.writes[0].count(b"connection: close") == 1
    assert transport.closed


@pytest.mark.parametrize(
    "header",
    [
        (b"x", b"a\r\nset-cookie: b=c"),
        (b"x", b"a\nb"),
        (b"x", b"a\rb"),
        (b"x", b"a\0b"),
        (b"x", b"\x7f"),
        (b"x: y\r\nz", b"a"),
        (b"x y", b"a"),
        (b"", b"\r\n"),
        (b"content-length", b"3"),
        (b"Transfer-Encoding", b"chunked"),
    ],
)
async def test_a_header_that_would_not_stay_within_its_line_is_not_sent(header: tuple[bytes, bytes]) -> None:
    one, transport = cycle()
    with pytest.raises(RuntimeError):
        await one.send_whole(200, [(b"a", b"tab\tis fine"), header], b"hello")
    assert transport.writes == []
    assert not one.response_started


async def test_nothing_is_sent_to_a_client_that_has_gone() -> None:
    one, transport = cycle()
    one.disconnected = True
    await one.send_whole(200, [], b"hello")
    assert transport.writes == []
