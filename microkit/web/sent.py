"""The way out: what of an answer has been sent."""

from __future__ import annotations

from collections.abc import Mapping
from random import getrandbits
from typing import Final

from starlette.types import Message, Send

from microkit.web.call import Reply

CLIENT_GONE: Final = 499
"""What is logged where nothing was sent: nginx' code for a client that left, here also a server that was stopped."""

_NO_LENGTH: Final = frozenset({204, 304})
_ID_CHARACTERS: Final = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."


def request_id(headers: Mapping[bytes, bytes]) -> str:
    """The caller's ``X-Request-ID`` where it is harmless in a log line, else a new one."""
    given = headers.get(b"x-request-id")
    if given and len(given) <= 128 and not given.translate(None, _ID_CHARACTERS):
        return given.decode()
    return f"{getrandbits(96):024x}"


class Sent:
    """Sends an answer, and knows its ``status`` and the ``size`` of what went out of its body, in bytes."""

    __slots__ = ("_head", "_send", "request_id", "size", "started", "status")

    def __init__(self, send: Send, method: str, request_id: str) -> None:
        self._send = send
        self._head = method == "HEAD"
        self.request_id = request_id
        self.started = False
        self.status = CLIENT_GONE
        self.size = 0

    async def whole(self, reply: Reply) -> None:
        """Sends a reply that is in one piece."""
        body = reply.body
        status = reply.status
        headers = [*reply.headers, (b"x-request-id", self.request_id.encode())]
        if status not in _NO_LENGTH:
            headers.append((b"content-length", b"%d" % len(body)))
        self.started, self.status = True, status
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        if self._head:
            body = b""
        self.size = len(body)
        await self._send({"type": "http.response.body", "body": body})

    async def message(self, message: Message) -> None:
        """Passes on what an application sends in pieces."""
        if message["type"] == "http.response.start":
            self.started, self.status = True, message["status"]
            headers = [*message.get("headers", ()), (b"x-request-id", self.request_id.encode())]
            message = {**message, "headers": headers}
        else:
            self.size += len(message.get("body", b""))
        await self._send(message)
