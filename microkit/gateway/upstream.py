"""Sending one request on to an instance of a service."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from microkit.discovery.port import Endpoint, Resolver
from microkit.errors import BadGateway, DeadlineExceeded, Problem
from microkit.gateway.body import RequestBody, stalled

CONNECT_TIMEOUT = 3.0
"""Seconds in which a connection must stand, waiting for a free one of the pool included."""

_NO_AUTO_HEADERS = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")

_NOT_CONNECTED = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)


@dataclass(slots=True)
class Outgoing:
    """One request to ``service``. ``target`` is path and query as they go on the wire; ``timeout`` is in seconds."""

    service: str
    method: str
    target: str
    headers: CIMultiDict[str]
    content: bytes | AsyncIterator[bytes] | None
    body: RequestBody | None
    timeout: float


class Upstreams:
    """Sends requests to the instances that the resolver knows, in turn."""

    def __init__(self, session: aiohttp.ClientSession, resolver: Resolver) -> None:
        if session.connector is None:
            raise RuntimeError("the HTTP session is closed")
        # The connections are shared with the service's client; cookies and decompression must not be: an answer passes
        # as it is, and one client's cookies are never sent for another.
        self._session = aiohttp.ClientSession(
            connector=session.connector,
            connector_owner=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=_NO_AUTO_HEADERS,
            max_field_size=16 * 1024,
        )
        self._resolver = resolver
        self._turns: defaultdict[str, int] = defaultdict(int)

    async def send(self, request: Outgoing) -> aiohttp.ClientResponse:
        """The answer's head; its body is still to be read.

        Nothing is sent twice: another instance is asked only where no connection could be made. (A request of an
        idempotent method is sent again by the client library where a kept connection turns out to be closed.)

        Raises:
            BadGateway: no instance can be reached, or it broke off or answered no HTTP.
            DeadlineExceeded: it did not answer in time.
            RequestTimeout: it was the client who did not send in time.
            Unavailable: no instance is known.
            Problem: one that ended the reading of the client's body.
            ClientGone: the client hung up while sending its body.
        """
        endpoints = self._in_turn(request.service, await self._resolver.resolve(request.service))
        for endpoint in endpoints[:-1]:
            try:
                return await self._send_to(endpoint, request)
            except _NOT_CONNECTED:
                continue
        try:
            return await self._send_to(endpoints[-1], request)
        except _NOT_CONNECTED:
            raise BadGateway(f"The service {request.service} cannot be reached") from None

    async def get_json(self, service: str, path: str, within: float) -> tuple[int, bytes]:
        """Status and body of a small document that the service offers to everybody, ``within`` so many seconds."""
        request = Outgoing(service, "GET", path, CIMultiDict(), None, None, within)
        response = await self.send(request)
        try:
            return response.status, await self.read(response, service)
        finally:
            response.close()

    async def read(self, response: aiohttp.ClientResponse, service: str) -> bytes:
        """The rest of the answer.

        Raises:
            BadGateway: it breaks off.
            DeadlineExceeded: it stalls.
        """
        try:
            return await response.read()
        except (TimeoutError, aiohttp.ClientError) as error:
            raise broken(error, service) from None

    def _in_turn(self, service: str, endpoints: Sequence[Endpoint]) -> Sequence[Endpoint]:
        if len(endpoints) == 1:
            return endpoints
        self._turns[service] = turn = (self._turns[service] + 1) % len(endpoints)
        return [*endpoints[turn:], *endpoints[:turn]]

    async def _send_to(self, endpoint: Endpoint, request: Outgoing) -> aiohttp.ClientResponse:
        body = request.body
        try:
            async with asyncio.timeout(request.timeout) as limit:
                if body is not None and not body.complete:
                    loop = asyncio.get_running_loop()
                    # The service has nothing to answer while the client sends: its time starts with the last piece.
                    body.on_progress = lambda: limit.reschedule(loop.time() + request.timeout)
                return await self._session.request(
                    request.method,
                    URL(endpoint.url + request.target, encoded=True),
                    headers=request.headers,
                    data=request.content,
                    allow_redirects=False,
                    timeout=aiohttp.ClientTimeout(
                        total=None, connect=CONNECT_TIMEOUT, sock_connect=CONNECT_TIMEOUT, sock_read=request.timeout
                    ),
                )
        except _NOT_CONNECTED:
            raise
        except (TimeoutError, aiohttp.ClientError, ValueError) as error:
            if body is not None and body.problem is not None:
                raise body.problem from None
            if body is not None and body.waits_for_client and isinstance(error, TimeoutError):
                raise stalled() from None
            raise broken(error, request.service) from None
        finally:
            if body is not None:
                body.on_progress = None


def broken(error: Exception, service: str) -> Problem:
    """What to tell the client about an exchange that failed."""
    if isinstance(error, TimeoutError):
        return DeadlineExceeded(f"The service {service} did not answer in time")
    if isinstance(error, aiohttp.ClientPayloadError):
        return BadGateway(f"The service {service} broke off in the middle of its answer")
    if isinstance(error, aiohttp.ClientConnectionError):
        return BadGateway(f"The service {service} closed the connection without an answer")
    return BadGateway(f"The service {service} gave an answer that is no HTTP")
