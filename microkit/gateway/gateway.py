"""The gateway: one address in front of the services of a system."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any
from urllib.parse import quote

import aiohttp
import orjson
from multidict import CIMultiDict
from opentelemetry.trace import SpanKind, get_current_span

from microkit import context
from microkit.auth.principal import ANONYMOUS, Principal
from microkit.contract import ANYONE
from microkit.discovery.port import Resolver
from microkit.errors import BadRequest, ConfigurationError, Forbidden, MethodNotAllowed, NotFound, Unauthorized
from microkit.gateway.body import ClientGone, Receive, RequestBody, Send, WhileClientWaits
from microkit.gateway.document import MergedDocument
from microkit.gateway.headers import body_length, forwarded_headers, returned_headers
from microkit.gateway.route import Route, RouteTable, canonical_path
from microkit.gateway.upstream import Outgoing, Upstreams, broken
from microkit.proxies import Proxies
from microkit.telemetry import Telemetry
from microkit.telemetry.propagation import inject

BODY_LIMIT = 10 * 1024 * 1024
"""Bytes of a request's body where neither the gateway nor the route says otherwise: uploads pass through here."""

_WHOLE = 64 * 1024
"""An answer of known size up to this many bytes is taken in whole before its head is sent, so that one that breaks off
is a 502 and not half an answer."""

_HEALTH_TIMEOUT = 2.0
_REQUEST_TIMEOUT = 408

Verify = Callable[[str], Awaitable[Principal]]


class Gateway:
    """The routes of a gateway. It holds no connections: a service binds it when it starts.

    ``title`` heads the merged OpenAPI document; ``body_limit`` (bytes) bounds what a client may send.
    """

    def __init__(self, routes: Sequence[Route], *, title: str = "API", body_limit: int = BODY_LIMIT) -> None:
        self.routes = tuple(routes)
        self.title = title
        self.body_limit = body_limit
        self.table = RouteTable(self.routes)

    @property
    def services(self) -> tuple[str, ...]:
        """The services behind it, each once, in the order of the routes."""
        return tuple(dict.fromkeys(route.service for route in self.routes))

    async def bind(
        self,
        *,
        telemetry: Telemetry,
        verify: Verify | None,
        resolver: Resolver,
        session: aiohttp.ClientSession,
        trusted_proxies: Sequence[str] = (),
    ) -> BoundGateway:
        """An ASGI app. It raises :class:`~microkit.errors.Problem`, for the web floor to render.

        ``session`` lends its connections and is closed by its owner.

        Raises:
            ConfigurationError: a route asks for roles and there is nothing to verify tokens with.
        """
        guarded = next((route for route in self.routes if ANYONE not in route.roles), None)
        if guarded is not None and verify is None:
            raise ConfigurationError(
                f"The route {guarded.prefix} lets only {guarded.roles} pass, but no issuer of tokens is known: set "
                "auth_issuer and auth_jwks_url"
            )
        return BoundGateway(self, telemetry, verify, Upstreams(session, resolver), Proxies(trusted_proxies))


class BoundGateway:
    """A :class:`Gateway` with connections. Made by :meth:`Gateway.bind`."""

    def __init__(
        self, gateway: Gateway, telemetry: Telemetry, verify: Verify | None, upstreams: Upstreams, proxies: Proxies
    ) -> None:
        self._gateway = gateway
        self._telemetry = telemetry
        self._durations = telemetry.metrics.http_client
        self._verify = verify
        self._upstreams = upstreams
        self._proxies = proxies
        self._document = MergedDocument(gateway.title, gateway.routes, upstreams)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise NotFound("The gateway speaks HTTP only")
        path = canonical_path(_raw_path(scope))
        method: str = scope["method"]
        route = self._route(path, method)
        # The web floor knows only that it is the gateway's; what the trace should say is where it went.
        served = get_current_span()
        served.update_name(f"{method} {route.prefix}")
        served.set_attribute("http.route", route.prefix)
        headers = forwarded_headers(scope["headers"])
        principal = await self._judge(route, headers.get("Authorization"))
        if principal is not None and principal.is_service:
            raise Forbidden("Services call each other directly, not through the gateway")
        scope.setdefault("state", {}).update(route=route.prefix, principal=principal or ANONYMOUS)
        timeout = min(route.timeout, context.remaining() or route.timeout)
        self._set_own_headers(headers, scope, principal, timeout)
        length = body_length(scope["headers"])
        limit = route.body_limit or self._gateway.body_limit
        body = None if length == 0 else RequestBody(receive, length=length, limit=limit)
        target = route.upstream_path(path)
        if query := scope["query_string"]:
            target = f"{target}?{query.decode('latin-1')}"
        outgoing = Outgoing(route.service, method, target, headers, None, body, timeout)
        began = time.perf_counter()
        status, failure = 0, ""
        try:
            with self._telemetry.span(
                f"{method} {route.prefix}",
                kind=SpanKind.CLIENT,
                attributes={
                    "http.request.method": method,
                    "server.address": route.service,
                    "url.template": route.prefix,
                },
            ) as span:
                headers.update(inject())
                if body is not None:
                    outgoing.content = await body.begin(timeout)
                    if body.length is not None:
                        headers["Content-Length"] = str(body.length)
                async with WhileClientWaits(receive, body):
                    status = await self._exchange(outgoing, route, send)
                span.set_attribute("http.response.status_code", status)
        except ClientGone:
            failure = ClientGone.__name__  # nobody is left to answer
        except Exception as error:
            failure = type(error).__name__
            raise
        finally:
            self._durations(route.service, method, route.prefix, status or "", failure).observe(
                time.perf_counter() - began
            )

    async def openapi(self) -> dict[str, Any]:
        """One OpenAPI document of all that can be reached through the routes."""
        return await self._document.read()

    def health_parts(self) -> Mapping[str, Callable[[], Awaitable[None]]]:
        """A probe for each service behind the gateway, by name; it raises where the service is not ready.

        None of them is critical: a gateway that refuses everybody because one of its services is away takes all down.
        """
        return {service: self._probe(service) for service in self._gateway.services}

    def _probe(self, service: str) -> Callable[[], Awaitable[None]]:
        async def probe() -> None:
            status, _ = await self._upstreams.get_json(service, "/health/ready", _HEALTH_TIMEOUT)
            if status != 200:
                raise ConnectionError(f"{service} is not ready: /health/ready answers {status}")

        return probe

    def _route(self, path: str, method: str) -> Route:
        found = self._gateway.table.find(path)
        if not found:
            raise NotFound("Nothing is offered under this path")
        for route in found:
            if not route.methods or method in route.methods:
                return route
        allowed = sorted({allowed for route in found for allowed in route.methods})
        raise MethodNotAllowed(headers={"Allow": ", ".join(allowed)})

    async def _judge(self, route: Route, authorization: str | None) -> Principal | None:
        """Who is calling, ``None`` where nobody proved anything and the route does not ask."""
        scheme, _, token = (authorization or "").partition(" ")
        bearer = token.strip() if scheme.lower() == "bearer" else ""
        roles = route.roles
        if ANYONE in roles:
            # The service behind judges: an expired token must not keep anybody from the operation that renews it.
            if not bearer or self._verify is None:
                return None
            try:
                return await self._verify(bearer)
            except Unauthorized:
                return None
        if not bearer or self._verify is None:
            raise Unauthorized("Send an access token", headers={"WWW-Authenticate": "Bearer"})
        principal = await self._verify(bearer)
        if not principal.may(roles):
            raise Forbidden(f"This needs one of the roles: {', '.join(roles)}")
        return principal

    def _set_own_headers(
        self, headers: CIMultiDict[str], scope: MutableMapping[str, Any], principal: Principal | None, timeout: float
    ) -> None:
        client = self._proxies.caller(scope)
        if client.address:
            headers["X-Forwarded-For"] = client.address
        headers["X-Forwarded-Proto"] = client.scheme
        if client.host:
            headers["X-Forwarded-Host"] = client.host
        if request_id := context.current().request_id:
            headers["X-Request-ID"] = request_id
        if principal is not None:
            headers["X-User-Id"] = principal.subject
        headers["Request-Timeout-Ms"] = str(max(1, int(timeout * 1000)))

    async def _exchange(self, outgoing: Outgoing, route: Route, send: Send) -> int:
        response = await self._upstreams.send(outgoing)
        try:
            await self._answer(response, route, send)
        finally:
            response.close()
        return response.status

    async def _answer(self, response: aiohttp.ClientResponse, route: Route, send: Send) -> None:
        headers = returned_headers(response.raw_headers)
        if response.status == _REQUEST_TIMEOUT:
            headers.append((b"connection", b"close"))  # the service means the body that this client has not sent
        if route.strip_prefix:
            headers = [_public_location(pair, response, route) for pair in headers]
        start = {"type": "http.response.start", "status": response.status, "headers": headers}
        length = response.content_length
        content = response.content
        if content.is_eof() or (length is not None and length <= _WHOLE):
            whole = await self._upstreams.read(response, route.service)
            if route.strip_prefix and response.content_type == "application/problem+json":
                whole = _public_instance(whole, route)
                headers = [pair for pair in headers if pair[0] != b"content-length"]
                start["headers"] = [*headers, (b"content-length", str(len(whole)).encode())]
            await send(start)
            await send({"type": "http.response.body", "body": whole})
            return
        await send(start)
        try:
            async for piece in content.iter_any():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        except (TimeoutError, aiohttp.ClientError) as error:
            # The head is out. What is left is to end the connection without ending the body, which the server does when
            # it sees an error: the client must be able to see that the answer is not whole.
            raise broken(error, route.service) from None
        await send({"type": "http.response.body", "body": b""})


def _raw_path(scope: MutableMapping[str, Any]) -> str:
    raw: bytes | None = scope.get("raw_path")
    if raw is None:
        return quote(scope["path"], safe="/:@!$&'()*+,;=~-._")
    try:
        return raw.decode("ascii")
    except UnicodeDecodeError:
        raise BadRequest("The path is not percent-encoded") from None


def _public_instance(problem: bytes, route: Route) -> bytes:
    """A problem document whose ``instance`` is the path that the client asked for, not the one behind the gateway."""
    try:
        document = orjson.loads(problem)
        document["instance"] = route.public_path(document["instance"])
    except (ValueError, LookupError, TypeError):
        return problem
    return orjson.dumps(document)


def _public_location(pair: tuple[bytes, bytes], response: aiohttp.ClientResponse, route: Route) -> tuple[bytes, bytes]:
    """``Location`` as the client can follow it, where the service named a path of its own."""
    name, value = pair
    if name not in (b"location", b"content-location"):
        return pair
    location = value.decode("latin-1")
    origin = str(response.url.origin())
    if location.startswith(origin + "/"):
        location = location[len(origin) :]
    if location.startswith("/") and not location.startswith("//"):
        return name, route.public_path(location).encode("latin-1")
    return pair
