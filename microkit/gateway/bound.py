"""A gateway at work: from a request to the route's handler, and its answer back."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Final, Protocol
from urllib.parse import quote

import orjson

from microkit import context
from microkit.client.upstream import Upstream
from microkit.contract import ANYONE
from microkit.errors import BadRequest, ConfigurationError, Problem
from microkit.gateway.body import ClientGone, Receive, RequestBody, Send
from microkit.gateway.caching.store import CacheStore
from microkit.gateway.document import MergedDocument
from microkit.gateway.exchange import Answer, Exchange, Headers
from microkit.gateway.filters.port import Filter
from microkit.gateway.headers import body_length, forwarded_headers, joined
from microkit.gateway.identity import Verify
from microkit.gateway.paths import canonical_path
from microkit.gateway.plan import Makings, Plan, plan
from microkit.gateway.pool import Pool
from microkit.gateway.report import RouteReport
from microkit.gateway.route import Route
from microkit.gateway.table import Asked, RouteTable
from microkit.gateway.upstreams import Upstreams
from microkit.gateway.watch import ClientWatch
from microkit.gateway.websocket import WebSocketProxy
from microkit.proxies import ClientAddress, Proxies
from microkit.request_head import RequestHead, head_of
from microkit.telemetry import Telemetry

_HEALTH_TIMEOUT: Final = 2.0
_LOCATIONS: Final = frozenset({b"location", b"content-location"})
_NO_LENGTH: Final = frozenset({204, 304})
_REQUEST_TIMEOUT: Final = 408
_VISIBLE: Final = re.compile(rb"[!-~]*")


class Defined(Protocol):
    """What a gateway was defined with."""

    title: str
    body_limit: int
    filters: tuple[Filter, ...]


class BoundGateway:
    """A gateway with connections. Made by :meth:`Gateway.bind`."""

    def __init__(
        self,
        gateway: Defined,
        *,
        telemetry: Telemetry,
        verify: Verify | None,
        upstream: Callable[[str], Upstream],
        trusted_proxies: Sequence[str],
        shared: dict[object, Any],
        setting: Callable[[str], Any],
        own: Callable[[], Mapping[str, Any]] | None,
    ) -> None:
        self._gateway = gateway
        self._own = own
        self._verify = verify
        self._pool = Pool()
        self._proxies = Proxies(trusted_proxies)
        self._proxied = bool(trusted_proxies)
        self._watch = ClientWatch()
        self._shared = shared
        self.upstreams = Upstreams(self._pool, upstream, telemetry)
        self._makings = Makings(telemetry, verify, setting, self.upstreams.send, shared)
        self._websockets = WebSocketProxy(self.upstreams, telemetry)
        self._reports: dict[str, RouteReport] = {}
        self._table = RouteTable(())
        self._plans: dict[int, Plan] = {}
        self._document = MergedDocument(gateway.title, (), self.upstreams, own)

    @property
    def routes(self) -> tuple[Route, ...]:
        """The routes in force."""
        return self._table.routes

    def replace(self, routes: Sequence[Route]) -> None:
        """Puts other routes in force, from the next request on. Those under way go on by the old ones; connections,
        limits, breakers and kept answers stay. Nothing changes where this raises.

        Raises:
            DefinitionError: a request could take two of them, or none could ever take one.
            ConfigurationError: one asks for tokens that nothing can verify, or a filter misses a setting.
        """
        check_tokens(routes, self._verify)
        table = RouteTable(routes)
        reports = {route.title: self._reports.get(route.title) or RouteReport() for route in routes}
        plans = {id(route): plan(route, self._gateway.filters, self._makings, reports[route.title]) for route in routes}
        document = MergedDocument(self._gateway.title, table.routes, self.upstreams, self._own)
        # One after the other without a wait between them: no request sees the one without the other.
        self._table, self._plans, self._reports, self._document = table, plans, reports, document

    async def close(self) -> None:
        """Ends the connections to the services, and forgets the answers that were kept."""
        await self._websockets.close()
        await self._pool.close()
        if CacheStore in self._shared:
            await self._shared[CacheStore].close()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            exchange, found = self._admitted({**scope, "method": "GET"}, receive)
            await self._websockets.serve(exchange, found, scope, receive, send)
            return
        answered = await self.respond(scope, receive)
        if isinstance(answered, tuple):
            status, headers, body = answered
            if status not in _NO_LENGTH:
                headers = [*headers, (b"content-length", b"%d" % len(body))]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": body})
        else:
            await answered(scope, receive, send)

    async def respond(
        self, scope: MutableMapping[str, Any], receive: Receive
    ) -> tuple[int, Headers, bytes] | Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]:
        """The answer: status, headers and body of one that is whole, else an ASGI app that streams it.

        Raises:
            Problem: there is none.
        """
        exchange, found = self._admitted(scope, receive)
        under_way = _UnderWay(exchange, found.report)
        watched = self._watch.begin(receive, exchange.body if isinstance(exchange.body, RequestBody) else None)
        try:
            try:
                answer = await found.handler(exchange)
            except BaseException as error:
                self._watch.end(watched, error)
                raise
        except ClientGone:
            under_way.ended(0)
            return _nobody
        except BaseException as error:
            under_way.ended(error.status if isinstance(error, Problem) else 0)
            raise
        self._watch.end(watched)
        scope["state"]["principal"] = exchange.principal
        if found.route.strip_prefix:
            _make_public(answer, found.route)
        if answer.status == _REQUEST_TIMEOUT:
            # The service means the body that this client has not sent.
            answer.headers.append((b"connection", b"close"))
        if answer.pieces is None and exchange.method != "HEAD":
            under_way.ended(answer.status)
            return answer.status, answer.headers, b"" if answer.empty else answer.body
        return partial(self._stream, exchange, answer, under_way)

    async def _stream(
        self,
        exchange: Exchange,
        answer: Answer,
        under_way: _UnderWay,
        _: MutableMapping[str, Any],
        receive: Receive,
        send: Send,
    ) -> None:
        body = exchange.body if isinstance(exchange.body, RequestBody) else None
        watched = self._watch.begin(receive, body)
        failure: BaseException | None = None
        status = answer.status
        try:
            try:
                await _deliver(exchange, answer, send)
            except BaseException as error:
                failure = error
                raise
            finally:
                self._watch.end(watched, failure)
        except ClientGone:
            status = 0  # nobody is left to answer
        finally:
            if answer.close is not None:
                answer.close()
            under_way.ended(status)

    def _admitted(self, scope: MutableMapping[str, Any], receive: Receive) -> tuple[Exchange, Plan]:
        """The request as filters see it, and the plan of the route that takes it."""
        path = canonical_path(_raw_path(scope))
        head = head_of(scope)
        known: _Known | None = head.known.get(self)
        if known is None:
            known = head.known[self] = self._look_at(scope, head)
        asked, client = known.asked, known.client
        query: bytes = scope["query_string"]
        if query and not _VISIBLE.fullmatch(query):
            raise BadRequest("The query is not percent-encoded")
        method: str = scope["method"]
        route = self._table.by_path(path, method)
        if route is None:
            caller = asked.get(b"authorization") or client.address.encode()
            route = self._table.match(path, Asked(method, _host(client.host), asked, query, caller))
        found = self._plans[id(route)]
        # The web floor knows only that it is the gateway's; this is what its trace and metrics should say.
        scope.setdefault("state", {})["route"] = route.prefix
        body: RequestBody | None = None
        if known.body:
            limit = route.body_limit or self._gateway.body_limit
            body = RequestBody(receive, length=known.length, limit=limit, may_trickle=route.idle_timeout is not None)
        exchange = Exchange(scope, path, asked, known.forwarded.copy(), client, body)
        exchange.token = head.token
        exchange.service = route.service
        exchange.target = route.upstream_path(path)
        exchange.timeout = min(route.timeout, context.remaining() or route.timeout)
        exchange.idle_timeout = route.idle_timeout or 0.0
        return exchange, found

    def _look_at(self, scope: MutableMapping[str, Any], head: RequestHead) -> _Known:
        """What the headers of a request say, which those of the next one on its connection mostly say, too."""
        headers, asked = head.headers, head.named
        if len(asked) != len(headers):
            asked = joined(headers)
        length: int | None = 0
        # Most requests have no body and no header twice: then there is nothing to be told apart.
        if len(asked) != len(headers) or b"content-length" in asked or b"transfer-encoding" in asked:
            length = body_length(headers)
        body = length != 0 or b"content-length" in asked
        return _Known(asked, forwarded_headers(headers), self._client(scope, asked), length, body)

    def _client(self, scope: MutableMapping[str, Any], asked: Mapping[bytes, bytes]) -> ClientAddress:
        if self._proxied or b"host" not in asked:
            return self._proxies.caller(scope)
        peer = scope.get("client")  # nobody's word counts, and the server has looked at the host
        return _address(peer[0] if peer else "", scope.get("scheme", "http"), asked[b"host"].decode("latin-1"))

    async def openapi(self, host: str = "") -> dict[str, Any]:
        """One OpenAPI document of all that can be reached through the routes, asked for under ``host``."""
        return await self._document.read(_host(host))

    def report(self) -> dict[str, Any]:
        """Requests, statuses and durations of each route, and the state of each service behind, as JSON has it."""
        return {
            "routes": {title: found.as_json() for title, found in self._reports.items()},
            "services": self.upstreams.state(),
        }

    def health_parts(self) -> Mapping[str, Callable[[], Awaitable[None]]]:
        """A probe for each service behind the gateway, by name; it raises where the service is not ready.

        None of them is critical: a gateway that refuses everybody because one of its services is away takes all down.
        """
        return {service: self._probe(service) for service in dict.fromkeys(route.service for route in self.routes)}

    def _probe(self, service: str) -> Callable[[], Awaitable[None]]:
        async def probe() -> None:
            status, _ = await self.upstreams.get_json(service, "/health/ready", _HEALTH_TIMEOUT)
            if status != 200:
                raise ConnectionError(f"{service} is not ready: /health/ready answers {status}")

        return probe


@dataclass(frozen=True, slots=True)
class _Known:
    """What the gateway makes of a request's headers. ``body`` says that one is announced, ``length`` its bytes,
    ``None`` where it is chunked."""

    asked: Mapping[bytes, bytes]
    forwarded: Headers
    client: ClientAddress
    length: int | None
    body: bool


# One and the same client asks for the same host again. A host has 263 bytes at most, the server has seen to that.
_address = lru_cache(maxsize=1024)(ClientAddress)


class _UnderWay:
    """A request that is counted as under way until it has ended."""

    __slots__ = ("_began", "_exchange", "_report")

    def __init__(self, exchange: Exchange, report: RouteReport) -> None:
        self._exchange = exchange
        self._report = report
        self._began = time.perf_counter()
        report.under_way += 1

    def ended(self, status: int) -> None:
        """With this status, 0 where nobody was left to answer."""
        self._report.under_way -= 1
        self._report.ended(status, time.perf_counter() - self._began)
        self._exchange.scope["state"]["principal"] = self._exchange.principal


async def _nobody(_: MutableMapping[str, Any], __: Receive, ___: Send) -> None:
    """Answers a client that has hung up."""


async def _deliver(exchange: Exchange, answer: Answer, send: Send) -> None:
    """Streams the answer to the client; of HEAD its head alone."""
    headers = answer.headers
    if answer.pieces is None:
        length = len(answer.body) if answer.body else answer.length
        if length is not None and not answer.empty:
            headers.append((b"content-length", b"%d" % length))
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": b""})
        return
    if answer.length is not None:
        headers.append((b"content-length", b"%d" % answer.length))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    # Where it breaks, the head is out. What is left is to end the connection without ending the body, which the server
    # does when it sees the error: the client must be able to see that the answer is not whole.
    async for piece in answer.pieces:
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def _make_public(answer: Answer, route: Route) -> None:
    """Paths in the answer's head, and in a problem document, as the client can follow them."""
    for place, (name, value) in enumerate(answer.headers):
        if name in _LOCATIONS and value.startswith(b"/") and not value.startswith(b"//"):
            answer.headers[place] = name, route.public_path(value.decode("latin-1")).encode("latin-1")
        elif name == b"content-type" and value == b"application/problem+json" and answer.body:
            answer.body = _public_instance(answer.body, route)


def _public_instance(problem: bytes, route: Route) -> bytes:
    """A problem document whose ``instance`` is the path that the client asked for, not the one behind the gateway."""
    try:
        document = orjson.loads(problem)
        document["instance"] = route.public_path(document["instance"])
    except (ValueError, LookupError, TypeError):
        return problem
    return orjson.dumps(document)


def check_tokens(routes: Sequence[Route], verify: Verify | None) -> None:
    """Refuses routes that no token could pass.

    Raises:
        ConfigurationError: there is one.
    """
    guarded = next((route for route in routes if ANYONE not in route.roles), None)
    if guarded is not None and verify is None:
        raise ConfigurationError(
            f"The route {guarded.prefix} lets only {guarded.roles} pass, but no issuer of tokens is known: set "
            "auth_issuer and auth_jwks_url"
        )


def _host(host: str) -> str:
    """The host without its port, in lower case."""
    if not host or host.endswith("]"):
        return host.lower()
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdigit() else host).lower()


def _raw_path(scope: MutableMapping[str, Any]) -> str:
    raw: bytes | None = scope.get("raw_path")
    if raw is None:
        return quote(scope["path"], safe="/:@!$&'()*+,;=~-._")
    try:
        return raw.decode("ascii")
    except UnicodeDecodeError:
        raise BadRequest("The path is not percent-encoded") from None
