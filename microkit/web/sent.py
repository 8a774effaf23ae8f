"""The way out: what of an answer has been sent."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from random import getrandbits
from typing import Any, Final

from starlette.types import Message, Send

from microkit.web.call import HeaderList, Reply

CLIENT_GONE: Final = 499
"""What is logged where nothing was sent: nginx' code for a client that left, here also a server that was stopped."""

FRAMING: Final = frozenset({b"content-length", b"transfer-encoding"})
"""Headers that say where a body ends, which is the server's business."""

_NO_LENGTH: Final = frozenset({204, 304})
_STATUSES: Final = range(200, 600)
# A field's name is a token, its value has no line ends and no other control characters (RFC 9110, 5.1 and 5.5).
_NAME: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_NOT_IN_VALUE: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_ID_CHARACTERS: Final = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."


def request_id(headers: Mapping[bytes, bytes]) -> str:
    """The caller's ``X-Request-ID`` where it is harmless in a log line, else a new one."""
    given = headers.get(b"x-request-id")
    if given and len(given) <= 128 and not given.translate(None, _ID_CHARACTERS):
        return given.decode()
    return f"{getrandbits(96):024x}"


class UnsendableAnswer(Exception):
    """A handler's answer that is no HTTP: a fault of the service, found while it can still be told as one."""


def check_sendable(status: int, headers: Iterable[tuple[Any, Any]]) -> None:
    """Looks an answer's head through before the server does, who would have begun to send by then.

    Raises:
        UnsendableAnswer: a status that ends no exchange, or a header that would not stay within its line.
    """
    if status not in _STATUSES:
        raise UnsendableAnswer(f"{status!r} is no status of an answer")
    for name, value in headers:
        if not isinstance(name, bytes) or not isinstance(value, bytes):
            raise UnsendableAnswer(f"the header {name!r} is not written in bytes")
        if not _NAME.fullmatch(name):
            raise UnsendableAnswer(f"{name!r} is no name of a header")
        if _NOT_IN_VALUE.search(value):
            raise UnsendableAnswer(f"the value of the header {name.decode()} has control characters")


class Sent:
    """Sends an answer, and knows its ``status`` and the ``size`` of what went out of its body, in bytes.

    ``began`` is when the request got its place among those that are worked on, ``None`` while it has none.
    ``more_headers`` are added to whatever is sent; ``on_head`` is called before the head of an answer in pieces is.
    """

    __slots__ = (
        "_head",
        "_send",
        "began",
        "method",
        "more_headers",
        "on_head",
        "request_id",
        "size",
        "started",
        "status",
    )

    def __init__(self, send: Send, method: str, request_id: str) -> None:
        self._send = send
        self.method = method
        self._head = method == "HEAD"
        self.request_id = request_id
        self.started = False
        self.status = CLIENT_GONE
        self.size = 0
        self.more_headers: HeaderList = []
        self.began: float | None = None
        self.on_head: Callable[[], None] | None = None

    async def whole(self, reply: Reply) -> None:
        """Sends a reply that is in one piece, and whose head can be sent."""
        body = reply.body
        status = reply.status
        headers = [*reply.headers, *self.more_headers, (b"x-request-id", self.request_id.encode())]
        self.started, self.status = True, status
        # Our own server takes it in one piece, where nothing stands in between that wants to see ASGI's messages.
        send_whole = getattr(getattr(self._send, "__self__", None), "send_whole", None)
        if send_whole is not None:
            self.size = 0 if self._head or status in _NO_LENGTH else len(body)
            await send_whole(status, headers, body)
            return
        if status not in _NO_LENGTH:
            headers.append((b"content-length", b"%d" % len(body)))
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        if self._head or status in _NO_LENGTH:
            body = b""
        self.size = len(body)
        await self._send({"type": "http.response.body", "body": body})

    async def message(self, message: Message) -> None:
        """Passes on what an application sends in pieces."""
        if message["type"] == "http.response.start":
            given = list(message.get("headers", ()))
            check_sendable(message["status"], given)
            self.started, self.status = True, message["status"]
            headers = [*given, *self.more_headers, (b"x-request-id", self.request_id.encode())]
            if self.on_head is not None:
                self.on_head()
            message = {**message, "headers": headers}
        else:
            self.size += len(message.get("body", b""))
        await self._send(message)
