"""What each kind of filter comes to at an edge. What is not here, one's own filters too, is left to the gateway."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from microkit.gateway.filters import (
    ApiKeys,
    CircuitBreaker,
    Compress,
    Cors,
    Fallback,
    Filter,
    RateLimit,
    RedirectToCdn,
    RequestHeaders,
    ResponseCache,
    ResponseHeaders,
    Retry,
    RewritePath,
    RewriteRequestJson,
    RewriteResponseJson,
    SizeLimit,
    StripPrefix,
    TimeLimit,
)
from microkit.gateway.rendering.edge import EdgeCompression, EdgeLimit, EdgeRoute

Setting = Callable[[str], Any]

_LEFT_TO_GATEWAY: Final[dict[type[Filter], str]] = {
    ApiKeys: "API keys are compared as hashes",
    CircuitBreaker: "a route has a breaker of its own",
    Fallback: "something else is answered while the service fails",
    ResponseCache: "answers are kept by RFC 9111",
    RewritePath: "paths are rewritten by a Python pattern",
    RewriteRequestJson: "JSON of requests is rewritten",
    RewriteResponseJson: "JSON of answers is rewritten",
}

_FRAMED: Final = frozenset({"content-type", "content-encoding", "date", "server", "location", "x-request-id", "vary"})
"""Headers of answers that a proxy writes itself, or can have but once."""

_SLOWEST: Final = 1.0
"""Requests a minute: proxies count no slower."""


@dataclass(slots=True)
class Draft:
    """A route under translation."""

    edge: EdgeRoute
    because: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def translated(edge: EdgeRoute, filters: Sequence[Filter], setting: Setting) -> tuple[EdgeRoute, list[str]]:
    """The route with its filters, in the order of their phases, and what has to be said about it."""
    draft = Draft(edge)
    for one in sorted(filters, key=lambda one: one.phase):
        translate = _TRANSLATIONS.get(type(one))
        if translate is None:
            draft.because.append(
                _LEFT_TO_GATEWAY.get(type(one), f"the filter {one.kind or type(one).__name__} is code")
            )
        else:
            translate(draft, one, setting)
    if draft.because:
        # The gateway does all of it: to do a part twice would count, compress and answer twice.
        bare = EdgeRoute(
            edge.id,
            edge.route,
            tuple(dict.fromkeys(draft.because)),
            timeout=draft.edge.timeout,
            idle_timeout=edge.idle_timeout,
            body_limit=edge.body_limit,
        )
        return bare, []
    return draft.edge, draft.notes


def _cors(draft: Draft, one: Any, setting: Setting) -> None:
    origins = (*one.origins, *(setting(one.setting) if one.setting else ()))
    if not origins:
        return
    if draft.edge.cors is not None:
        draft.because.append("there are several cors filters")
        return
    draft.edge = replace(draft.edge, cors=replace(one, origins=origins, setting=""))


def _compress(draft: Draft, one: Any, _: Setting) -> None:
    draft.edge = replace(draft.edge, compression=EdgeCompression(one.least, one.level, one.types))


def _rate_limit(draft: Draft, one: Any, _: Setting) -> None:
    limit = one.parsed()
    per_minute = limit.requests * 60 / limit.per
    if one.by == "key":
        draft.because.append("a rate limit counts by API key")
    elif per_minute < _SLOWEST:
        draft.because.append(f"the rate limit {one.limit} is slower than one a minute")
    else:
        name = one.name or draft.edge.route.prefix
        draft.edge = replace(draft.edge, limits=(*draft.edge.limits, EdgeLimit(name, one.by, per_minute, limit.burst)))


def _cdn(draft: Draft, one: Any, _: Setting) -> None:
    if draft.edge.cdn is not None or draft.edge.limits:
        draft.because.append("requests are redirected in several ways, or after they were counted")
        return
    draft.edge = replace(draft.edge, cdn=one)


def _request_headers(draft: Draft, one: Any, _: Setting) -> None:
    removed = (*draft.edge.request_removed, *one.remove)
    draft.edge = replace(draft.edge, request_headers={**draft.edge.request_headers, **one.set}, request_removed=removed)


def _response_headers(draft: Draft, one: Any, _: Setting) -> None:
    if own := sorted(name for name in (*one.set, *one.remove) if name.lower() in _FRAMED):
        draft.because.append(f"the answer's {', '.join(own)} is changed")
        return
    # The route's stand inside those of the gateway, so that the gateway's word is the last.
    draft.edge = replace(
        draft.edge,
        response_headers={**one.set, **draft.edge.response_headers},
        response_removed=(*draft.edge.response_removed, *one.remove),
    )


def _retry(draft: Draft, one: Any, _: Setting) -> None:
    if unknown := set(one.statuses) - {500, 502, 503, 504, 403, 404, 429}:
        draft.because.append(f"it is sent again after {sorted(unknown)}")
        return
    if one.keyed:
        draft.notes.append("an unsafe request is not sent again, were it with an Idempotency-Key")
    draft.edge = replace(draft.edge, retries=(one.attempts, one.statuses))


def _size_limit(draft: Draft, one: Any, _: Setting) -> None:
    if one.response is not None:
        draft.because.append("answers are bounded in size")
    elif one.request == 0:
        draft.because.append("no body at all is taken")
    elif one.request is not None:
        draft.edge = replace(draft.edge, body_limit=min(draft.edge.body_limit, one.request))


def _strip_prefix(draft: Draft, one: Any, _: Setting) -> None:
    draft.edge = replace(draft.edge, strips=(*draft.edge.strips, one.prefix))


def _time_limit(draft: Draft, one: Any, _: Setting) -> None:
    draft.edge = replace(draft.edge, timeout=min(draft.edge.timeout, one.seconds))


_TRANSLATIONS: Final[dict[type[Filter], Callable[[Draft, Any, Setting], None]]] = {
    Compress: _compress,
    Cors: _cors,
    RateLimit: _rate_limit,
    RedirectToCdn: _cdn,
    RequestHeaders: _request_headers,
    ResponseHeaders: _response_headers,
    Retry: _retry,
    SizeLimit: _size_limit,
    StripPrefix: _strip_prefix,
    TimeLimit: _time_limit,
}
