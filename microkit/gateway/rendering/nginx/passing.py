"""What happens to a request whose route is known: who calls, limits, and on to the service or to the gateway.

A route has two places. In the first nobody has been asked yet who calls: preflights, redirects, limits by address. It
asks (``auth_request``) and goes on to the second, where the user is known: limits by user, and the service. nginx looks
at limits before it asks who calls, so one place would not do; and it looks at them in one place only.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from fnmatch import translate
from typing import Final
from urllib.parse import quote

from microkit.contract import ANYONE
from microkit.gateway.auth_endpoint import AUTH_PATH
from microkit.gateway.rendering.edge import Edge, EdgeCompression, EdgeLimit, EdgeRoute
from microkit.gateway.rendering.nginx.matching import INTERNAL
from microkit.gateway.rendering.nginx.problems import error_pages
from microkit.gateway.rendering.nginx.sharing import SHARING_HEADERS, Sharing, returning
from microkit.gateway.rendering.nginx.text import Block, one_of, pattern, spelled, word, worded

_CONNECT: Final = 5.0
_GATEWAY_MARGIN: Final = 2.0
"""Seconds that the gateway gets beside its own time-out, so that it is the one to say what took too long."""

_TYPES: Final = (
    "application/geo+json",
    "application/hal+json",
    "application/javascript",
    "application/json",
    "application/ld+json",
    "application/manifest+json",
    "application/problem+json",
    "application/vnd.api+json",
    "application/xml",
    "font/ttf",
    "image/svg+xml",
    "text/css",
    "text/csv",
    "text/javascript",
    "text/markdown",
    "text/plain",
    "text/xml",
)
"""What a type with a star stands for: nginx knows none. Streams of events are not among them."""


class Passing:
    """Maps (for ``http``) and places (for ``server``) of the routes. ``answers`` are the headers of answers, each with
    the word for its value, empty where there is none."""

    def __init__(self, edge: Edge) -> None:
        self.maps = Block()
        self.places = Block()
        self.answers: list[tuple[str, str]] = []
        self._edge = edge
        self._strips: dict[tuple[str, ...], str] = {(): "mk_target"}
        self._zones: dict[EdgeLimit, str] = {}
        self._auth: dict[str, str] = {}
        self._sharing = Sharing(self.maps)
        self._direct = [one for one in edge.routes if not one.through_gateway]
        self._upgrades()
        for one in self._direct:
            self._first(one)
            self._second(one, once=False)
            if self._several(one):
                self._second(one, once=True)
        for one in edge.routes:
            if one.through_gateway:
                self._through(one.id, f"Sent through the gateway: {'; '.join(one.because)}.", one)
        self._through("own", "What the gateway answers itself.", None)
        self._answers()

    def request_headers(self, route: EdgeRoute | None = None) -> list[tuple[str, str]]:
        """Names and words for the values of what services get; an empty one is not sent. nginx takes those of the
        server where a place has none of its own: only a ``route`` that changes some has."""
        changed = (*route.request_headers, *route.request_removed) if route else ()
        removed = {name.lower() for name in changed}
        passed = [(name, f"$http_{name.lower().replace('-', '_')}") for name in self._edge.passed_headers]
        own = [
            ("Host", "$mk_host"),
            ("Connection", "$mk_connection"),
            ("Upgrade", "$mk_upgrade"),
            ("X-Forwarded-For", "$remote_addr"),
            ("X-Forwarded-Proto", "$mk_scheme"),
            ("X-Forwarded-Host", "$mk_asked_host"),
            ("X-Request-ID", "$mk_request_id"),
            ("X-User-Id", "$mk_user"),
            ("Request-Timeout-Ms", "$mk_timeout_ms"),
            ("traceparent", "$mk_traceparent"),
            ("tracestate", "$mk_tracestate"),
        ]
        if any(one.route.websocket for one in self._edge.routes):
            own += [(f"Sec-WebSocket-{one}", f"$http_sec_websocket_{one.lower()}") for one in _HANDSHAKE]
        added = [(word(name), worded(value)) for name, value in route.request_headers.items()] if route else []
        return [*[pair for pair in passed if pair[0].lower() not in removed], *own, *added]

    def _host(self, service: str) -> str:
        upstream = self._edge.upstreams[service]
        name, _, port = upstream.servers[0][0].rpartition(":")
        return name if port == ("443" if upstream.scheme == "https" else "80") else upstream.servers[0][0]

    def _several(self, one: EdgeRoute) -> bool:
        """Whether there can be another instance to send a request to."""
        servers = self._edge.upstreams[one.route.service].servers
        return len(servers) > 1 or is_name(servers[0][0])

    def _first(self, one: EdgeRoute) -> None:
        inner = self._place(one.body_limit)
        inner.add("set", "$mk_route", one.id)
        if one.cors is not None:
            self._sharing.refuse(inner, one.cors)
        if one.route.websocket:
            number = f"_{self._sharing.number(one.cors)}" if one.cors is not None else ""
            returning(inner, f"$mk_foreign_page{number}", 403)
        if one.cdn is not None:
            self._redirect(inner, one)
        by_user = any(limit.by == "user" for limit in one.limits) and self._edge.tokens
        if not by_user:
            self._limit(inner, one)
        if self._edge.tokens:
            inner.add("auth_request", self._asked(one))
            inner.add("auth_request_set", "$mk_user", "$upstream_http_x_user_id")
            inner.add("auth_request_set", "$mk_challenge", "$upstream_http_www_authenticate")
            for line in error_pages({500: 503}):  # who calls could not be found out
                inner.add(*line)
        inner.add("try_files", "/.none", f"{INTERNAL}/send/{one.id}{'$mk_once' if self._several(one) else ''}")
        self.places.gap()
        self.places.comment(one.route.title)
        self.places.lines += _located(f"{INTERNAL}/{one.id}", inner)

    def _second(self, one: EdgeRoute, *, once: bool) -> None:
        route, inner = one.route, self._place(one.body_limit)
        if any(limit.by == "user" for limit in one.limits) and self._edge.tokens:
            self._limit(inner, one)
        inner.add("set", "$mk_timeout_ms", str(max(1, round(one.timeout * 1000))))
        inner.add("set", "$mk_host", worded(self._host(route.service)))
        if one.request_headers or one.request_removed:
            for name, value in self.request_headers(one):
                inner.add("proxy_set_header", name, value)
        self._times(inner, one.timeout, one.idle_timeout)
        self._again(inner, one, once=once)
        for name in dict.fromkeys(
            (*one.response_headers, *one.response_removed, *(SHARING_HEADERS if one.cors else ()))
        ):
            inner.add("proxy_hide_header", word(name))
        inner.add("proxy_hide_header", "X-Request-ID")
        if one.strips:
            self._public_locations(inner, one)
        if one.compression is not None:
            _compress(inner, one.compression)
        if one.idle_timeout is not None or route.websocket:
            inner.add("proxy_buffering", "off")
            inner.add("proxy_request_buffering", "off")
        upstream = self._edge.upstreams[route.service]
        if upstream.scheme == "https":
            inner.add("proxy_ssl_server_name", "on")
        target = f"${{{self._stripped(one.strips)}}}$mk_query"
        inner.add("proxy_pass", f"{upstream.scheme}://{upstream_name(route.service)}{target}")
        self.places.lines += _located(f"{INTERNAL}/send/{one.id}{'_once' if once else ''}", inner)

    def _through(self, name: str, why: str, one: EdgeRoute | None) -> None:
        edge = self._edge
        inner = self._place(one.body_limit if one else edge.own_body_limit)
        timeout = (one.timeout if one else edge.own_timeout) + _GATEWAY_MARGIN
        inner.add("set", "$mk_host", "$mk_asked_host")
        self._times(inner, timeout, one.idle_timeout if one else None)
        inner.add("proxy_next_upstream", "off")
        inner.add("proxy_buffering", "off")
        inner.add("proxy_request_buffering", "off")
        inner.add("proxy_hide_header", "X-Request-ID")
        upstream = edge.upstreams[edge.gateway]
        inner.add("proxy_pass", f"{upstream.scheme}://{upstream_name(edge.gateway)}$mk_target$mk_query")
        self.places.gap()
        self.places.comment(f"{one.route.title}. {why}" if one else why)
        if one is not None:
            inner.lines.insert(0, f"set $mk_route {one.id};")
        self.places.lines += _located(f"{INTERNAL}/{name}", inner)

    def _place(self, body_limit: int) -> Block:
        inner = Block()
        inner.add("internal")
        inner.add("client_max_body_size", str(body_limit))
        return inner

    def _times(self, inner: Block, timeout: float, idle: float | None) -> None:
        longest = max(timeout, idle or 0.0)
        inner.add("proxy_connect_timeout", _milliseconds(min(timeout, _CONNECT)))
        inner.add("proxy_read_timeout", _milliseconds(longest))
        inner.add("proxy_send_timeout", _milliseconds(longest))

    def _again(self, inner: Block, one: EdgeRoute, *, once: bool) -> None:
        """Another instance: for POST and PATCH nginx does so only where nothing has been sent, for PUT and DELETE it
        would do it again after that."""
        attempts, statuses = one.retries
        if once:
            inner.add("proxy_next_upstream", "off")
            return
        again = ["timeout", *(f"http_{status}" for status in sorted(statuses))] if attempts > 1 else []
        inner.add("proxy_next_upstream", "error", *again)
        servers = len(self._edge.upstreams[one.route.service].servers)
        inner.add("proxy_next_upstream_tries", str(attempts if attempts > 1 else max(2, servers)))
        inner.add("proxy_next_upstream_timeout", _milliseconds(one.timeout))

    def _public_locations(self, inner: Block, one: EdgeRoute) -> None:
        own = "|".join(re.escape(server) for server, _ in self._edge.upstreams[one.route.service].servers)
        before = worded("".join(one.strips))
        inner.add("proxy_redirect", pattern(f"^(?:https?://(?:{own}))?(/(?!/).*)$"), f'{before[:-1]}$1"')

    def _stripped(self, strips: tuple[str, ...]) -> str:
        """The variable that holds the path without these prefixes."""
        if strips not in self._strips:
            source = self._stripped(strips[:-1])
            self._strips[strips] = name = f"mk_stripped_{len(self._strips)}"
            prefix, rest = spelled(strips[-1]), f"{name}_rest"
            entries = [
                (pattern(f"^{prefix}$"), "/"),
                (pattern(f"^{prefix}(?<{rest}>/.*)$"), f"${rest}"),
            ]
            self.maps.map(f"${source}", name, entries, default=f"${source}")
        return self._strips[strips]

    def _limit(self, inner: Block, one: EdgeRoute) -> None:
        for limit in dict.fromkeys(one.limits):
            burst = [f"burst={limit.burst - 1}", "nodelay"] if limit.burst > 1 else []
            inner.add("limit_req", f"zone={self._zone(limit)}", *burst)

    def _zone(self, limit: EdgeLimit) -> str:
        if limit not in self._zones:
            self._zones[limit] = name = f"mk_limit_{len(self._zones) + 1}"
            per_user = "$mk_who" if self._edge.tokens else "$mk_address"
            key = {"address": "$mk_address", "user": per_user, "everybody": "everybody"}[limit.by]
            self.maps.gap()
            self.maps.comment(f"{limit.name}: {limit.per_minute:g} a minute, {limit.burst} at once, by {limit.by}")
            seconds = limit.per_minute / 60
            rate = f"{seconds:.0f}r/s" if seconds == int(seconds) else f"{math.floor(limit.per_minute)}r/m"
            self.maps.add("limit_req_zone", key, f"zone={name}:10m", f"rate={rate}")
        return self._zones[limit]

    def _asked(self, one: EdgeRoute) -> str:
        """The place that finds out who calls, and whether they may."""
        route = one.route
        query = "".join(f"&role={quote(role, safe='')}" for role in route.roles)
        query += "".join(f"&scope={quote(scope, safe='')}" for scope in route.scopes)
        if query not in self._auth:
            self._auth[query] = f"{INTERNAL}/auth/{len(self._auth) + 1}"
            upstream, inner = self._edge.upstreams[self._edge.gateway], Block()
            inner.add("internal")
            anyone = ANYONE in route.roles
            inner.lines += ['if ($http_authorization = "") {', f"    return {204 if anyone else 401};", "}"]
            inner.add(
                "error_page", "404", f"{INTERNAL}/problem/404"
            )  # who asks for this place; no other refusal is told
            inner.add("proxy_method", "GET")
            inner.add("proxy_pass_request_body", "off")
            for name, value in self.request_headers():
                if name.lower() in _OF_WHO_ASKS:
                    inner.add("proxy_set_header", name, value)
            inner.add("proxy_set_header", "Host", worded(self._host(self._edge.gateway)))
            inner.add("proxy_set_header", "Connection", '""')
            inner.add("proxy_set_header", "Content-Length", '""')
            inner.add("proxy_connect_timeout", _milliseconds(_CONNECT))
            inner.add("proxy_read_timeout", _milliseconds(_CONNECT))
            inner.add("proxy_next_upstream", "error", "timeout")
            asked = word(f"{upstream.scheme}://{upstream_name(self._edge.gateway)}{AUTH_PATH}?{query[1:]}")
            inner.add("proxy_pass", asked)
            self.places.lines += _located(self._auth[query], inner)
        return self._auth[query]

    def _upgrades(self) -> None:
        sockets = [one.id for one in self._edge.routes if one.route.websocket]
        fits = [(pattern(f"^(?:{'|'.join(sockets)}):websocket$", cased=False), "websocket")] if sockets else []
        self.maps.map('"$mk_route:$http_upgrade"', "mk_upgrade", fits)
        self.maps.map("$mk_upgrade", "mk_connection", [("websocket", "upgrade")])
        asked = '"$http_upgrade $http_origin $mk_scheme://$mk_asked_host"'
        entries = [(pattern(r"^websocket (\S+) \1$", cased=False), "0"), (pattern(r"^websocket \S", cased=False), "1")]
        self.maps.map(asked, "mk_foreign_page", entries, default="0")

    def _redirect(self, inner: Block, one: EdgeRoute) -> None:
        cdn = one.cdn
        assert cdn is not None  # noqa: S101  who calls has looked
        name = f"mk_cdn_{one.id}"
        wanted = "|".join(translate(path) for path in cdn.paths)
        self.maps.map(
            '"$request_method $mk_target"', name, [(pattern(f"^(?:GET|HEAD) (?:{wanted})"), "1")], default="0"
        )
        base = worded(cdn.base.rstrip("/"))[:-1]
        inner.lines += [
            f"if (${name}) {{",
            f'    set $mk_kept "public, max-age={cdn.max_age}";',
            f'    return {cdn.status} {base}$mk_target$mk_query";',
            "}",
        ]

    def _answers(self) -> None:
        """The headers of answers by route, refusals too: all are said once, so that no place forgets another's."""
        self.answers += [("X-Request-ID", "$mk_request_id"), ("Cache-Control", "$mk_kept")]
        by_name: dict[str, dict[str, list[str]]] = {}
        spelling: dict[str, str] = {}
        for one in self._direct:
            for name, value in one.response_headers.items():
                spelling.setdefault(name.lower(), name)
                by_name.setdefault(name.lower(), {}).setdefault(value, []).append(one.id)
        for number, (name, values) in enumerate(by_name.items(), 1):
            entries = [(pattern(one_of(routes)), worded(value)) for value, routes in values.items()]
            self.maps.map("$mk_route", f"mk_answer_{number}", entries)
            self.answers.append((word(spelling[name]), f"$mk_answer_{number}"))
        self.answers += self._sharing.answers(self._direct)
        waits = [(pattern(f"^{INTERNAL}/problem/429:{one.id}$"), str(_wait(one))) for one in self._direct if one.limits]
        self.maps.map('"$uri:$mk_route"', "mk_retry_after", waits)
        self.answers.append(("Retry-After", "$mk_retry_after"))


_HANDSHAKE: Final = ("Extensions", "Key", "Protocol", "Version")
_OF_WHO_ASKS: Final = frozenset(
    {"authorization", "x-forwarded-for", "x-forwarded-proto", "x-request-id", "traceparent", "tracestate"}
)


def upstream_name(service: str) -> str:
    """The name of a service's instances."""
    return f"mk_{re.sub(r'[^A-Za-z0-9_-]', '_', service)}"


def is_name(server: str) -> bool:
    """Whether it is a name and a port, and not an address."""
    return re.search("[A-Za-z]", server.rpartition(":")[0]) is not None and not server.startswith("[")


def _located(path: str, inner: Block) -> list[str]:
    return ["", f"location = {path} {{", *(f"    {line}" for line in inner.lines), "}"]


def _milliseconds(seconds: float) -> str:
    return f"{max(1, round(seconds * 1000))}ms"


def _wait(one: EdgeRoute) -> int:
    return max(math.ceil(60 / limit.per_minute) for limit in one.limits)


def _compress(inner: Block, wanted: EdgeCompression) -> None:
    types = dict.fromkeys(known for kind in wanted.types for known in _kinds(kind))
    inner.add("gzip", "on")
    inner.add("gzip_proxied", "any")
    inner.add("gzip_vary", "on")
    inner.add("gzip_min_length", str(wanted.least))
    inner.add("gzip_comp_level", str(wanted.level))
    others = [kind for kind in types if kind != "text/html"]  # nginx always takes it, and complains when told
    if others:
        inner.add("gzip_types", *(word(kind) for kind in others))


def _kinds(kind: str) -> Sequence[str]:
    before, star, after = kind.partition("*")
    return [one for one in _TYPES if one.startswith(before) and one.endswith(after)] if star else [kind]
