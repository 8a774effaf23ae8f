"""A gateway at work: from a request to the route's handler, and its answer back."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
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
from microkit.gateway.exchange import Answer, Exchange
from microkit.gateway.filters.port import Filter
from microkit.gateway.headers import body_length, forwarded_headers
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
from microkit.telemetry import Telemetry

_HEALTH_TIMEOUT: Final = 2.0
_LOCATIONS: Final = frozenset({b"location", b"content-location"})
_REQUEST_TIMEOUT: Final = 408
_VISIBLE: Final = re.compile(rb"[!-~]*")


class Defined(Protocol):
    """What a gateway was defined with."""

    title: str
    body_limit: int
    filters: tuple[Filter, ...]

    def with_routes(self, routes: Sequence[Route]) -> Defined: ...


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
        path = canonical_path(_raw_path(scope))
        asked: dict[bytes, bytes] = dict(scope["headers"])
        client = self._client(scope, asked)
        kind = scope["type"]
        method: str = scope["method"] if kind == "http" else "GET"
        query: bytes = scope["query_string"]
        if query and not _VISIBLE.fullmatch(query):
            raise BadRequest("The query is not percent-encoded")
        wanted = Asked(method, _host(client.host), asked, query, asked.get(b"authorization") or client.address.encode())
        found = self._plans[id(self._table.match(path, wanted))]
        scope.setdefault("state", {})["route"] = found.route.prefix
        headers = forwarded_headers(scope["headers"])
        if kind == "websocket":
            exchange = Exchange({**scope, "method": "GET"}, path, asked, headers, client, None)
            self._prepare(exchange, found.route)
            await self._websockets.serve(exchange, found, scope, receive, send)
            return
        body: RequestBody | None = None
        # Most requests have no body and no header twice: then there is nothing to be told apart.
        if len(asked) != len(scope["headers"]) or b"content-length" in asked or b"transfer-encoding" in asked:
            length = body_length(scope["headers"])
            if length != 0 or b"content-length" in asked:
                limit = found.route.body_limit or self._gateway.body_limit
                body = RequestBody(receive, length=length, limit=limit)
        exchange = Exchange(scope, path, asked, headers, client, body)
        self._prepare(exchange, found.route)
        await self._exchange(exchange, found, receive, send)

    def _client(self, scope: MutableMapping[str, Any], asked: Mapping[bytes, bytes]) -> ClientAddress:
        if self._proxied or b"host" not in asked:
            return self._proxies.caller(scope)
        peer = scope.get("client")  # nobody's word counts, and the server has looked at the host
        return ClientAddress(peer[0] if peer else "", scope.get("scheme", "http"), asked[b"host"].decode("latin-1"))

    def _prepare(self, exchange: Exchange, route: Route) -> None:
        exchange.service = route.service
        exchange.target = route.upstream_path(exchange.path)
        exchange.timeout = min(route.timeout, context.remaining() or route.timeout)
        exchange.idle_timeout = route.idle_timeout or 0.0

    async def _exchange(self, exchange: Exchange, found: Plan, receive: Receive, send: Send) -> None:
        report = found.report
        report.under_way += 1
        began = time.perf_counter()
        status = 0
        answer: Answer | None = None
        watched = self._watch.begin(receive, exchange.body if isinstance(exchange.body, RequestBody) else None)
        failure: BaseException | None = None
        try:
            try:
                answer = await found.handler(exchange)
                status = answer.status
                await _deliver(exchange, answer, found.route, send)
            except BaseException as error:
                failure = error
                status = error.status if isinstance(error, Problem) else status
                raise
            finally:
                self._watch.end(watched, failure)
        except ClientGone:
            status = 0  # nobody is left to answer
        finally:
            if answer is not None and answer.close is not None:
                answer.close()
            report.under_way -= 1
            report.ended(status, time.perf_counter() - began)
            exchange.scope["state"]["principal"] = exchange.principal

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


async def _deliver(exchange: Exchange, answer: Answer, route: Route, send: Send) -> None:
    """Sends the answer to the client."""
    if route.strip_prefix:
        _make_public(answer, route)
    headers = answer.headers
    if answer.status == _REQUEST_TIMEOUT:
        headers.append((b"connection", b"close"))  # the service means the body that this client has not sent
    start = {"type": "http.response.start", "status": answer.status, "headers": headers}
    if answer.pieces is None:
        head_only = exchange.method == "HEAD" or answer.empty
        length = answer.length if head_only and not answer.body else len(answer.body)
        if length is not None and not answer.empty:
            headers.append((b"content-length", b"%d" % length))
        await send(start)
        await send({"type": "http.response.body", "body": b"" if head_only else answer.body})
        return
    if answer.length is not None:
        headers.append((b"content-length", b"%d" % answer.length))
    await send(start)
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
