"""From a gateway and what stands around it to an edge."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from microkit.contract import ANYONE
from microkit.errors import ConfigurationError
from microkit.gateway.filters import ApiKeys, Filter
from microkit.gateway.gateway import Gateway
from microkit.gateway.headers import passes
from microkit.gateway.rendering.edge import Edge, EdgeRoute, EdgeUpstream
from microkit.gateway.rendering.translation import Setting, translated
from microkit.gateway.route import Route

PASSED: Final = (
    "Accept",
    "Accept-Charset",
    "Accept-Encoding",
    "Accept-Language",
    "Access-Control-Request-Headers",
    "Access-Control-Request-Method",
    "Api-Version",
    "Authorization",
    "Baggage",
    "Cache-Control",
    "Content-Digest",
    "Content-Disposition",
    "Content-Encoding",
    "Content-Language",
    "Content-Type",
    "Cookie",
    "DNT",
    "Idempotency-Key",
    "If-Match",
    "If-Modified-Since",
    "If-None-Match",
    "If-Range",
    "If-Unmodified-Since",
    "Last-Event-ID",
    "Origin",
    "Pragma",
    "Prefer",
    "Priority",
    "Range",
    "Referer",
    "Repr-Digest",
    "Save-Data",
    "Sec-Fetch-Dest",
    "Sec-Fetch-Mode",
    "Sec-Fetch-Site",
    "User-Agent",
    "X-CSRF-Token",
    "X-Requested-With",
)
"""Request headers that services get. A proxy cannot take away all headers that begin with ``X-User-``; so it passes
what is known, and what is forged is never among it."""

DOCUMENTS: Final = ("/health", "/health/live", "/health/ready", "/health/startup", "/openapi.json", "/docs")
"""What a gateway answers besides its routes that the outside may see."""


def _no_setting(name: str) -> Any:
    raise ConfigurationError(f"{name} is no setting: there are none where the gateway is rendered by hand")


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What is known of the system beside the gateway's definition.

    ``addresses`` are the base URLs of services; ``headers`` names of further request headers that services read;
    ``own_paths`` what the gateway's service answers itself. ``timeout`` (seconds) and ``body_limit`` (bytes) hold for
    those. ``tokens`` says whether tokens can be verified. With ``through`` every route is sent through the gateway: the
    proxy then takes connections, bounds what comes, and refuses what has two readings.
    """

    gateway: str
    addresses: Mapping[str, Sequence[str]]
    own_paths: Sequence[str] = ()
    headers: Iterable[str] = ()
    hosts: Sequence[str] = ("*",)
    trusted_proxies: Sequence[str] = ()
    setting: Setting = _no_setting
    timeout: float = 10.0
    body_limit: int = 1024 * 1024
    tokens: bool = True
    through: bool = False


def read(gateway: Gateway, around: Surroundings, *, routes: Sequence[Route] | None = None) -> Edge:
    """The edge of a gateway; ``routes`` in the place of its own, where a file has them.

    Raises:
        ConfigurationError: it is not known where a service is, or a filter misses a setting.
    """
    chosen = tuple(gateway.routes if routes is None else routes)
    notes: list[str] = []
    found = []
    for number, route in enumerate(chosen):
        edge, said = translated(_bare(f"r{number}", route, gateway), (*gateway.filters, *route.filters), around.setting)
        edge, more = _checked(edge, around)
        found.append(edge)
        notes += said + more
    for edge in found:
        _check_tokens(edge, around)
    needed = dict.fromkeys(edge.route.service for edge in found if not edge.through_gateway)
    needed[around.gateway] = None
    return Edge(
        title=gateway.title,
        gateway=around.gateway,
        routes=tuple(found),
        upstreams={service: _upstream(service, around.addresses) for service in needed},
        own_paths=tuple(dict.fromkeys((*around.own_paths, *DOCUMENTS))),
        hosts=tuple(around.hosts),
        trusted_proxies=tuple(around.trusted_proxies),
        passed_headers=_passed(found, gateway, around),
        own_timeout=around.timeout,
        own_body_limit=around.body_limit,
        tokens=around.tokens,
        notes=tuple(dict.fromkeys((*_general(found), *notes))),
    )


def _bare(name: str, route: Route, gateway: Gateway) -> EdgeRoute:
    return EdgeRoute(
        name,
        route,
        strips=(route.strip_prefix,) if route.strip_prefix else (),
        timeout=route.timeout,
        idle_timeout=route.idle_timeout,
        body_limit=route.body_limit or gateway.body_limit,
    )


def _checked(edge: EdgeRoute, around: Surroundings) -> tuple[EdgeRoute, list[str]]:
    """What of the route itself a proxy cannot do, and what it does a little otherwise."""
    route, because, notes = edge.route, list(edge.because), []
    if route.answer_limit is not None:
        because.append("answers are bounded in size")
    if around.through:
        because.append("all are")
    if route.service == around.gateway:
        because.append("the gateway answers it")
    if because:
        limited = EdgeRoute(
            edge.id,
            route,
            tuple(dict.fromkeys(because)),
            timeout=edge.timeout,
            idle_timeout=edge.idle_timeout,
            body_limit=edge.body_limit,
        )
        return limited, []
    if edge.limits and {limit.by for limit in edge.limits} >= {"user", "address"}:
        notes.append(f"{route.title}: requests are counted by address when it is known who calls, not before")
    if route.idle_timeout is not None and route.idle_timeout != edge.timeout:
        longest = max(route.idle_timeout, edge.timeout)
        notes.append(f"{route.title}: one time-out holds for the answer's head and between its parts, {longest:g} s")
    if edge.retries[0] > 1:
        notes.append(f"{route.title}: it is sent again without a pause and without a retry budget")
    return edge, notes


def _check_tokens(edge: EdgeRoute, around: Surroundings) -> None:
    if ANYONE not in edge.route.roles and not around.tokens:
        raise ConfigurationError(
            f"The route {edge.route.prefix} lets only {edge.route.roles} pass, but no issuer of tokens is known: set "
            "auth_issuer and auth_jwks_url"
        )


def _general(routes: Sequence[EdgeRoute]) -> list[str]:
    notes = []
    if any(edge.limits for edge in routes):
        notes.append("answers carry no RateLimit headers, and each proxy counts for itself")
    if any(edge.route.weight for edge in routes):
        notes.append("a caller keeps its side of a canary, which need not be the side it has at the gateway")
    return notes


def _upstream(service: str, addresses: Mapping[str, Sequence[str]]) -> EdgeUpstream:
    urls = addresses.get(service, ())
    if not urls:
        raise ConfigurationError(
            f"Where is the service {service}? Name it in the gateway's SERVICES setting, or with --upstream "
            f"{service}=http://10.0.0.5:3001"
        )
    servers, schemes = [], set()
    for url in urls:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.path.strip("/") or parts.query:
            raise ConfigurationError(f"{service}: {url!r} is no base URL of an instance; write http://10.0.0.5:3001")
        schemes.add(parts.scheme)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        servers.append((f"{host}:{port}", 1))
    if len(schemes) > 1:
        raise ConfigurationError(f"{service} has instances with http and with https; let them be of one kind")
    return EdgeUpstream(service, "https" if "https" in schemes else "http", tuple(servers))


def _passed(routes: Iterable[EdgeRoute], gateway: Gateway, around: Surroundings) -> tuple[str, ...]:
    """Each name once, however it is written."""
    names = [*PASSED, *around.headers]
    for edge in routes:
        names += edge.route.headers
        names += [one.header for one in _filters(gateway, edge.route) if isinstance(one, ApiKeys)]
    refused = {"host", "connection", "content-length", "transfer-encoding", "upgrade", "expect"}
    known = {name.lower(): name for name in reversed(names) if name.lower() not in refused}
    return tuple(known[key] for key in sorted(known) if passes(key.encode()))


def _filters(gateway: Gateway, route: Route) -> tuple[Filter, ...]:
    return (*gateway.filters, *route.filters)
