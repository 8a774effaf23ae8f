"""One request and its answer, on aiohttp's connections.

``ClientSession.request`` does much that a call between services has no use for: cookies, redirects, proxies, netrc,
middlewares, its own time-outs, headers copied twice, and sending a request again on its own. What it stands on is used
here directly: the connector with its pool, the request, the response.
"""

from __future__ import annotations

import asyncio
from typing import Final

import aiohttp
from aiohttp import hdrs
from aiohttp.connector import Connection
from aiohttp.typedefs import LooseHeaders
from multidict import CIMultiDict
from yarl import URL

from microkit.client.codec import WireAnswer, WireRequest
from microkit.client.policy import Policies
from microkit.errors import BadGateway

NOT_SENT: Final = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)
"""Errors after which the other side has certainly seen nothing of the request."""

_LATE: Final = 0.05
"""Seconds; where a timer comes so much later than it was to, the event loop has turns in which no connection is made in
time, however near the other side: a burst of work, or a machine with more to do than it can."""


class AnswerTooBig(BadGateway, status=502):
    """No use in asking again."""


class Request(aiohttp.ClientRequest):
    """aiohttp's, with headers that were made for it and need no copying."""

    def update_headers(self, headers: LooseHeaders | None) -> None:
        assert type(headers) is CIMultiDict  # noqa: S101  as ask() makes them
        headers[hdrs.HOST] = self.url.host_port_subcomponent or ""
        self.headers = headers


class Exchange:
    """Sends requests to one service over the connections of ``session``."""

    def __init__(self, service: str, session: aiohttp.ClientSession, policies: Policies) -> None:
        if session.connector is None:
            raise RuntimeError("the HTTP session is closed")
        self._service = service
        self._session = session
        self._connector = session.connector
        self._limit = policies.answer_limit
        # The deadline is over the whole call; this one is for connecting only.
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=policies.connect_timeout)
        self._headers = CIMultiDict({hdrs.USER_AGENT: "microkit", hdrs.ACCEPT_ENCODING: "gzip, deflate"})

    async def ask(self, wire: WireRequest, base: str) -> WireAnswer:
        """Sends ``wire`` to the instance at ``base``, once.

        Raises:
            aiohttp.ClientError, OSError: as aiohttp tells them; for those of :data:`NOT_SENT` nothing was sent.
            AnswerTooBig: the answer is larger than allowed.
        """
        response = await self._send(wire, URL(base + wire.target, encoded=True))
        # Read to its end it gives its connection back by itself.
        try:
            headers = response.headers
            length = response.content_length
            if length is not None and length <= self._limit and hdrs.CONTENT_ENCODING not in headers:
                body = await response.read()
            else:
                body = await self._read(response)
        except BaseException:
            response.close()
            raise
        status = response.status
        return WireAnswer(status, body, headers.get(hdrs.RETRY_AFTER) if status >= 400 else None)

    async def _send(self, wire: WireRequest, url: URL) -> aiohttp.ClientResponse:
        """The answer's head."""
        headers = self._headers.copy()
        headers.update(wire.headers)
        loop = asyncio.get_running_loop()
        request = Request(wire.method, url, headers=headers, data=wire.body, loop=loop, session=self._session)
        connection = await self._connect(request, loop)
        try:
            protocol = connection.protocol
            assert protocol is not None  # noqa: S101  a connection just made has one
            protocol.set_response_params(skip_payload=wire.method == hdrs.METH_HEAD, read_until_eof=True)
            response = await request.send(connection)
        except BaseException:
            connection.close()
            raise
        try:
            await response.start(connection)
        except BaseException:
            response.close()
            connection.close()
            raise
        return response

    async def _connect(self, request: Request, loop: asyncio.AbstractEventLoop) -> Connection:
        """A connection; where none stood in time while this loop was late itself, that says nothing of the other side,
        and it is asked once or twice more."""
        for patience in (2, 1, 0):
            began = loop.time()
            try:
                return await self._connector.connect(request, traces=[], timeout=self._timeout)
            except TimeoutError:
                late = loop.time() - began - (self._timeout.sock_connect or 0.0)
                if late < _LATE or not patience:
                    break
        raise aiohttp.ConnectionTimeoutError(f"no connection to {request.url.host} in time") from None

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
    return "no connection in time" if isinstance(error, TimeoutError) else type(error).__name__
