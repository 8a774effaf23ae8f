"""WebSockets through the gateway (RFC 6455): uvicorn's on the client's side, aiohttp's on the service's.

The handshake passes the same filters, token check and limits as a request. Then messages go both ways, each side read
only as fast as the other takes: both libraries stop reading where nobody fetches. Each hop has its own pings. Close
codes pass; an end without one becomes 1014 (bad gateway) for the client and 1001 (going away) for the service. With the
token of its handshake a WebSocket ends, too: 1008 (policy violation) to both.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Any, Final

import aiohttp
import orjson
from opentelemetry.trace import SpanKind
from yarl import URL

from microkit.client.instance import Instance
from microkit.client.upstream import Outcome
from microkit.errors import BadGateway, DeadlineExceeded, Forbidden, NotFound, Problem, Unavailable
from microkit.gateway.body import Receive, Send
from microkit.gateway.exchange import Exchange
from microkit.gateway.filters.cors import Cors, check_own
from microkit.gateway.plan import Plan
from microkit.gateway.upstreams import Upstreams, own_headers, trace_headers
from microkit.telemetry import Telemetry

MESSAGE_LIMIT: Final = 1024 * 1024
"""Bytes of a message where the route's ``body_limit`` says nothing."""

MOST: Final = 10_000
"""WebSockets of one gateway at a time."""

_HEARTBEAT: Final = 20.0
_CLOSE_TIMEOUT: Final = 2.0
_GOING_AWAY, _POLICY_VIOLATION, _TOO_BIG, _BAD_GATEWAY = 1001, 1008, 1009, 1014
_LONGEST_SLEEP: Final = 30.0
"""Seconds for which a clock is trusted not to be set."""
_NOT_SENT: Final = frozenset({1004, 1005, 1006, 1015})
"""Codes that stand for the lack of one, and are never sent (RFC 6455, 7.4.1)."""
_HANDSHAKE: Final = (b"sec-websocket-",)


class WebSocketProxy:
    """All WebSockets of one gateway."""

    def __init__(self, upstreams: Upstreams, telemetry: Telemetry) -> None:
        self._upstreams = upstreams
        self._telemetry = telemetry
        self._session: aiohttp.ClientSession | None = None
        self._open: set[asyncio.Task[Any]] = set()
        telemetry.metrics.gauge("gateway_websockets", "WebSockets that are open.")().set_function(
            lambda: len(self._open)
        )

    async def close(self) -> None:
        """Ends all of them: 1001 to both sides."""
        for task in list(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    async def serve(
        self, exchange: Exchange, found: Plan, scope: MutableMapping[str, Any], receive: Receive, send: Send
    ) -> None:
        """From the handshake to the end."""
        try:
            if not found.route.websocket:
                raise NotFound("No WebSockets are taken here")
            if len(self._open) >= MOST:
                raise Unavailable("Too many WebSockets are open")
            _check_origin(exchange, found)
            await found.handshake(exchange)
            exchange.scope["state"]["principal"] = exchange.principal
        except Problem as problem:
            await _deny(problem, exchange, scope, receive, send)
            return
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  an ASGI app runs in a task
        self._open.add(task)
        try:
            await self._joined(exchange, found, scope, receive, send)
        finally:
            self._open.discard(task)

    async def _joined(
        self, exchange: Exchange, found: Plan, scope: MutableMapping[str, Any], receive: Receive, send: Send
    ) -> None:
        limit = found.route.body_limit or MESSAGE_LIMIT
        name = f"WebSocket {found.route.prefix}"
        attributes = {"server.address": exchange.service, "url.template": found.route.prefix}
        with self._telemetry.span(name, kind=SpanKind.CLIENT, attributes=attributes) as span:
            try:
                service = await self._connect(
                    exchange, list(scope.get("subprotocols") or ()), limit, trace_headers(span)
                )
            except Problem as problem:
                span.set_attribute("error.type", type(problem).__qualname__)
                await _deny(problem, exchange, scope, receive, send)
                return
            await receive()  # websocket.connect
            await send({"type": "websocket.accept", "subprotocol": service.protocol, "headers": []})
            both = _Both(service, receive, send, limit)
            await both.run(idle=found.route.idle_timeout, expires_at=exchange.principal.expires_at)
            span.set_attribute("microkit.websocket.close_code", both.code)

    async def _connect(
        self, exchange: Exchange, subprotocols: list[str], limit: int, trace: list[tuple[bytes, bytes]]
    ) -> aiohttp.ClientWebSocketResponse:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                cookie_jar=aiohttp.DummyCookieJar(),
                connector=aiohttp.TCPConnector(limit=0),
                trace_configs=[_no_redirects()],
            )
        headers = [
            (name.decode("latin-1"), value.decode("utf-8", "surrogateescape"))
            for name, value in [*exchange.headers, *own_headers(exchange, exchange.timeout), *trace]
            if not name.startswith(_HANDSHAKE) and name != b"origin"
        ]
        query = f"?{exchange.query.decode('latin-1')}" if exchange.query else ""
        avoid: list[Instance] = []
        upstream = self._upstreams.service(exchange.service)
        upstream.begin()
        while True:
            chosen = await upstream.pick(avoid)
            outcome = Outcome.LEFT
            try:
                async with asyncio.timeout(exchange.timeout):
                    joined = await self._session.ws_connect(
                        URL(chosen.instance.url + exchange.target + query, encoded=True),
                        headers=headers,
                        protocols=subprotocols,
                        heartbeat=_HEARTBEAT,
                        max_msg_size=limit,
                        timeout=aiohttp.ClientWSTimeout(ws_close=_CLOSE_TIMEOUT),
                    )
                outcome = Outcome.ANSWERED
            except aiohttp.WSServerHandshakeError as error:
                outcome = Outcome.ANSWERED if error.status < 500 else Outcome.FAILED
                if error.status in {401, 403, 404}:
                    raise Forbidden(f"The service {exchange.service} takes no WebSocket of this caller here") from None
                raise BadGateway(f"The service {exchange.service} did not take the WebSocket") from None
            except TimeoutError:
                outcome = Outcome.FAILED
                raise DeadlineExceeded(f"The service {exchange.service} did not answer in time") from None
            except _Redirected:
                outcome = Outcome.ANSWERED
                raise BadGateway(f"The service {exchange.service} did not take the WebSocket") from None
            except aiohttp.ClientError as error:
                outcome = Outcome.FAILED
                avoid.append(chosen.instance)
                more = len(avoid) < len(upstream.balancer.instances)
                if not isinstance(error, aiohttp.ClientConnectorError) or not more or not upstream.may_retry("connect"):
                    raise BadGateway(f"The service {exchange.service} cannot be reached") from None
            else:
                return joined
            finally:
                chosen.done(outcome)


class _Redirected(aiohttp.ClientError):
    """Where a service sends a handshake elsewhere, nobody follows: it holds the caller's token and identity."""


def _no_redirects() -> aiohttp.TraceConfig:
    async def refuse(_: aiohttp.ClientSession, __: Any, ___: aiohttp.TraceRequestRedirectParams) -> None:
        raise _Redirected

    config = aiohttp.TraceConfig()  # ws_connect has no allow_redirects
    config.on_request_redirect.append(refuse)
    return config


class _Both:
    """The two directions of one WebSocket. ``code`` is what it was closed with."""

    def __init__(self, service: aiohttp.ClientWebSocketResponse, receive: Receive, send: Send, limit: int) -> None:
        self._service = service
        self._receive = receive
        self._send = send
        self._limit = limit
        self._client_gone = False
        self._last = asyncio.get_running_loop().time()
        self.code = _GOING_AWAY
        self._reason = ""

    async def run(self, *, idle: float | None, expires_at: float | None) -> None:
        """Until one side ends, nothing is said for ``idle`` seconds, or it is ``expires_at`` (since 1970)."""
        tasks = [asyncio.create_task(self._to_service()), asyncio.create_task(self._to_client())]
        if idle is not None:
            tasks.append(asyncio.create_task(self._watch_silence(idle)))
        if expires_at is not None:
            tasks.append(asyncio.create_task(self._watch_token(expires_at)))
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            await self._end()
        for result in ended:
            if isinstance(result, Exception) and not isinstance(result, (ConnectionError, aiohttp.ClientError)):
                raise result

    async def _to_service(self) -> None:
        while True:
            message = await self._receive()
            self._last = asyncio.get_running_loop().time()
            if message["type"] == "websocket.disconnect":
                self._client_gone = True
                self.code, self._reason = message.get("code") or 1005, message.get("reason") or ""
                return
            text, data = message.get("text"), message.get("bytes")
            size = len(data) if data is not None else len((text or "").encode())
            if size > self._limit:
                self.code, self._reason = _TOO_BIG, f"at most {self._limit} bytes"
                return
            if data is not None:
                await self._service.send_bytes(data)
            else:
                await self._service.send_str(text or "")

    async def _to_client(self) -> None:
        while True:
            message = await self._service.receive()
            self._last = asyncio.get_running_loop().time()
            if message.type is aiohttp.WSMsgType.TEXT:
                await self._send({"type": "websocket.send", "text": message.data})
            elif message.type is aiohttp.WSMsgType.BINARY:
                await self._send({"type": "websocket.send", "bytes": message.data})
            else:
                if message.type is aiohttp.WSMsgType.CLOSE:
                    self.code, self._reason = message.data or 1005, message.extra or ""
                else:
                    self.code = self._service.close_code or 1006
                return

    async def _watch_silence(self, idle: float) -> None:
        loop = asyncio.get_running_loop()
        while (left := self._last + idle - loop.time()) > 0:  # noqa: ASYNC110  no message is to pay for it
            await asyncio.sleep(left)
        self.code, self._reason = _GOING_AWAY, "nothing was said for too long"

    async def _watch_token(self, expires_at: float) -> None:
        while (left := expires_at - time.time()) > 0:  # noqa: ASYNC110  it is only the clock that is waited for
            await asyncio.sleep(min(left, _LONGEST_SLEEP))
        self.code, self._reason = _POLICY_VIOLATION, "the access token has expired"

    async def _end(self) -> None:
        code, reason = self.code, self._reason.encode()[:120].decode("utf-8", "ignore")
        with suppress(Exception):  # whoever is gone needs no farewell
            async with asyncio.timeout(_CLOSE_TIMEOUT):
                await self._service.close(code=_sendable(code, _GOING_AWAY), message=reason.encode())
        if not self._client_gone:
            with suppress(Exception):
                async with asyncio.timeout(_CLOSE_TIMEOUT):
                    await self._send(
                        {"type": "websocket.close", "code": _sendable(code, _BAD_GATEWAY), "reason": reason}
                    )


def _sendable(code: int, instead: int) -> int:
    if code == 1005:
        return 1000
    return instead if code in _NOT_SENT or not 1000 <= code < 5000 else code


def _check_origin(exchange: Exchange, found: Plan) -> None:
    """Only pages of the host itself may open one, and those that a :class:`Cors` filter names, which then judges."""
    origin = exchange.asked.get(b"origin")
    if origin is not None and not any(isinstance(one, Cors) for one in found.filters):
        check_own(exchange, origin)


async def _deny(
    problem: Problem, exchange: Exchange, scope: MutableMapping[str, Any], receive: Receive, send: Send
) -> None:
    """Refuses the handshake, with the problem document where the server can send one."""
    await receive()
    if "websocket.http.response" not in (scope.get("extensions") or {}):
        await send({"type": "websocket.close", "code": 1008})
        return
    body = orjson.dumps({**problem.document(), "instance": exchange.path})
    headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in problem.headers.items()]
    headers += [(b"content-type", b"application/problem+json"), (b"cache-control", b"no-store")]
    headers.append((b"content-length", b"%d" % len(body)))
    await send({"type": "websocket.http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body})
