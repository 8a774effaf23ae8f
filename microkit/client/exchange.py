"""One request and its answer, with aiohttp."""

from __future__ import annotations

import asyncio
from typing import Final

import aiohttp
from yarl import URL

from microkit.client.codec import WireAnswer, WireRequest
from microkit.client.policy import Policies
from microkit.errors import BadGateway

NOT_SENT: Final = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)
"""Errors after which the other side has certainly seen nothing of the request."""


class AnswerTooBig(BadGateway, status=502):
    """No use in asking again."""


class Exchange:
    """Sends requests to one service over the connections of ``session``."""

    def __init__(self, service: str, session: aiohttp.ClientSession, policies: Policies) -> None:
        self._service = service
        self._request = session.request
        self._limit = policies.answer_limit
        # The deadline is over the whole call, so aiohttp sets no timer for it; its own is for connecting only.
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=policies.connect_timeout)

    async def ask(self, wire: WireRequest, base: str) -> WireAnswer:
        """Sends ``wire`` to the instance at ``base``.

        Raises:
            aiohttp.ClientError, OSError: as aiohttp tells them; for those of :data:`NOT_SENT` nothing was sent.
            AnswerTooBig: the answer is larger than allowed.
        """
        response = await self._request(
            wire.method,
            URL(base + wire.target, encoded=True),
            data=wire.body,
            headers=wire.headers,
            allow_redirects=False,
            timeout=self._timeout,
        )
        # Read to its end it has given its connection back by itself; `async with` would wait for that once more.
        try:
            headers = response.headers
            length = response.content_length
            if length is not None and length <= self._limit and "Content-Encoding" not in headers:
                body = await response.read()
            else:
                body = await self._read(response)
        except BaseException:
            response.close()
            raise
        status = response.status
        return WireAnswer(status, body, headers.get("Retry-After") if status >= 400 else None)

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        body = bytearray()
        async for chunk in response.content.iter_any():
            body += chunk
            if len(body) > self._limit:  # leaving the answer half read ends its connection
                raise AnswerTooBig(f"{self._service} answered with more than {self._limit} bytes")
        return bytes(body)


def why_not_sent(error: Exception) -> str:
    """In a few words."""
    if isinstance(error, aiohttp.ClientConnectorError):
        return error.os_error.strerror or type(error.os_error).__name__
    return "no connection in time" if isinstance(error, asyncio.TimeoutError) else type(error).__name__
