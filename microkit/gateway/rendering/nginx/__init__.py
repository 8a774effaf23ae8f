"""An nginx configuration from an edge, for stock nginx (1.27.3 and later) without a module that is not its own."""

from __future__ import annotations

import re
from typing import Final

from microkit.errors import ConfigurationError
from microkit.gateway.rendering.edge import Edge, EdgeUpstream
from microkit.gateway.rendering.nginx.matching import INTERNAL, Matching
from microkit.gateway.rendering.nginx.passing import Passing, is_name, upstream_name
from microkit.gateway.rendering.nginx.problems import document, error_pages, statuses
from microkit.gateway.rendering.nginx.text import DOLLAR, Block, pattern, word
from microkit.gateway.rendering.placement import Placement

__all__ = ["render"]

_AMBIGUOUS: Final = (
    "//",
    r"/(?:\.|%2[eE]){1,2}(?:[/;]|$)",
    r"[\x00-\x20\x7f\\]",
    r"%(?:[01][0-9a-fA-F]|7[fF]|2[fF]|5[cC])",
    "%(?![0-9a-fA-F]{2})",
)
"""Paths with a second reading, as :func:`microkit.gateway.paths.canonical_path` refuses them."""

_UNRESERVED: Final = "2[dDeE]|3[0-9]|4[1-9a-fA-F]|5[0-9aAfF]|6[1-9a-fA-F]|7[0-9aAeE]"
_SAFE_IN_JSON: Final = "A-Za-z0-9/%:@!$&'()*+,;=~._-"
_UNREADABLE: Final = "The path is ambiguous, or the query is not percent-encoded"
_TRACEPARENT: Final = (
    r"^(?!ff)[0-9a-f]{2}-(?!0{32})(?<mk_trace>[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?$"
)
_EJECT: Final = ("max_fails=5", "fail_timeout=30s")
_KEPT: Final = "64"
_CLIENT: Final = (
    ("client_header_timeout", "10s"),
    ("client_body_timeout", "30s"),
    ("send_timeout", "30s"),
    ("keepalive_timeout", "75s"),
    ("keepalive_requests", "10000"),
    ("reset_timedout_connection", "on"),
    ("client_header_buffer_size", "2k"),
    ("large_client_header_buffers", "4", "8k"),
    ("client_body_buffer_size", "64k"),
    ("server_tokens", "off"),
    ("merge_slashes", "off"),
    ("absolute_redirect", "off"),
    ("ignore_invalid_headers", "on"),
    ("underscores_in_headers", "off"),
    ("uninitialized_variable_warn", "off"),
    ("variables_hash_max_size", "16384"),
    ("map_hash_bucket_size", "256"),
    ("proxy_headers_hash_max_size", "2048"),
    ("proxy_headers_hash_bucket_size", "128"),
)


def render(edge: Edge, placement: Placement) -> str:
    """A whole configuration file.

    Raises:
        ConfigurationError: nginx has no way to say something of it.
    """
    names = [upstream_name(service) for service in edge.upstreams]
    if len(set(names)) != len(names):
        raise ConfigurationError(f"nginx: two services have the same name to it: {', '.join(edge.upstreams)}")
    matching, passing = Matching(edge), Passing(edge)
    whole = Block()
    whole.comment(f"{edge.title}: written by `microkit gateway render nginx`. Change the routes, not this file.")
    for note in edge.notes:
        whole.comment(f"- {note}.")
    for one in edge.routes:
        if one.because:
            whole.comment(f"- {one.route.title} is sent through the gateway: {'; '.join(one.because)}.")
    _main(whole, placement)
    http = Block()
    _http(http, placement)
    http.lines += ["", *_requests(edge).lines, "", *matching.maps.lines, "", *passing.maps.lines]
    for upstream in edge.upstreams.values():
        _upstream(http, upstream, placement)
    http.block("server", _server(edge, placement, matching, passing))
    whole.block("http", http)
    return whole.text()


def _main(whole: Block, placement: Placement) -> None:
    events = Block()
    events.add("worker_connections", "4096")
    whole.gap()
    whole.add("worker_processes", "auto")
    whole.add("worker_rlimit_nofile", "16384")
    whole.add("pid", f"{placement.folder}/nginx.pid")
    whole.add("error_log", "stderr", "warn")
    whole.block("events", events)


def _http(http: Block, placement: Placement) -> None:
    for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"):
        http.add(f"{kind}_temp_path", f"{placement.folder}/{kind}")
    for client in _CLIENT:
        http.add(*client)
    if placement.resolver:
        http.add("resolver", placement.resolver, "valid=10s")
    fields = (
        ("time", "$time_iso8601"),
        ("client", "$remote_addr"),
        ("method", "$request_method"),
        ("path", "$mk_raw"),
        ("status", "$status"),
        ("seconds", "$request_time"),
        ("route", "$mk_route"),
        ("upstream", "$upstream_addr"),
        ("request_id", "$mk_request_id"),
        ("trace_id", "$mk_trace"),
    )
    line = ",".join(f'"{name}":"{variable}"' for name, variable in fields)
    http.add("log_format", "microkit", "escape=json", f"'{{{line}}}'")
    http.add("access_log", placement.access_log, *(["microkit"] if placement.access_log != "off" else []))
    dollar = Block()
    dollar.add("default", '"$"')
    http.block(f"geo ${DOLLAR}", dollar)


def _requests(edge: Edge) -> Block:
    """What is known of every request: its path in one spelling, who sends it, what it may say about itself."""
    maps = Block()
    maps.comment("The path as it came; empty where the target cannot be read.")
    target = r'^(?:[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*)?(?<mk_came>/[^?#]*)(?:\?[!"$-~]*)?$'
    maps.map("$request_uri", "mk_raw", [(pattern(target), "$mk_came")])
    maps.map("$request_uri", "mk_query", [(pattern(r"(?<mk_asked>\?.+)$"), "$mk_asked")])
    maps.map("$mk_raw", "mk_ambiguous", [('""', "1"), *((pattern(one), "1") for one in _AMBIGUOUS)], default="0")
    maps.comment("What is refused before its path was read stays what it is.")
    early = pattern(f"^{INTERNAL}/problem/")
    maps.map("$uri", "mk_unreadable", [(early, "0")], default="$mk_ambiguous")
    maps.comment("Letters and digits that came percent-encoded are decoded, where nothing else is encoded.")
    spellings = [(pattern("^[^%]*$"), "$mk_raw"), (pattern(f"^(?>[^%]+|%(?:{_UNRESERVED}))*$"), "$uri")]
    maps.map("$mk_raw", "mk_path", spellings, default="$mk_raw")
    safe = pattern(f"^[{_SAFE_IN_JSON}]*$")
    maps.map("$mk_raw", "mk_instance", [(safe, "$mk_raw")])
    identity = pattern("^[A-Za-z0-9_.-]{1,128}$")
    maps.map("$http_x_request_id", "mk_request_id", [(identity, "$http_x_request_id")], default="$request_id")
    maps.map("$http_traceparent", "mk_traceparent", [(pattern(_TRACEPARENT), "$http_traceparent")])
    maps.map("$mk_traceparent", "mk_tracestate", [('""', '""')], default="$http_tracestate")
    maps.map("$mk_traceparent", "mk_trace_member", [('""', '""')], default=r'",\"trace_id\":\"$mk_trace\""')
    methods = pattern("^(?:GET|HEAD|OPTIONS|POST|PATCH)$")
    maps.comment("nginx would send PUT and DELETE again after the service has had them.")
    maps.map("$request_method", "mk_once", [(methods, '""')], default="_once")
    maps.map("$http_authorization", "mk_caller", [('""', "$remote_addr")], default="$http_authorization")
    maps.comment("Of an IPv6 address its /64, which is what one household gets.")
    network = [(pattern("(?s)^(?<mk_network>.{8}).{8}$"), "$mk_network")]
    maps.map("$binary_remote_addr", "mk_address", network, default="$binary_remote_addr")
    maps.map("$mk_user", "mk_who", [('""', "$mk_address")], default="$mk_user")
    maps.comment("Of a 401 nginx passes the challenge on by itself, where there is one.")
    challenges = [
        (pattern(f"^{INTERNAL}/problem/401:$"), "Bearer"),
        (pattern(f"^{INTERNAL}/problem/403:."), "$mk_challenge"),
    ]
    maps.map('"$uri:$mk_challenge"', "mk_told_challenge", challenges)
    _told_by_proxies(maps, edge)
    if "*" not in edge.hosts:
        known = [f"^{re.escape(one)}$" if "*" not in one else f"{re.escape(one[1:])}$" for one in edge.hosts]
        maps.map("$host", "mk_stranger", [(pattern(one.lower()), "0") for one in known], default="1")
        maps.map("$uri", "mk_misled", [(early, "0")], default="$mk_stranger")
    return maps


def _told_by_proxies(maps: Block, edge: Edge) -> None:
    """Whose word counts for the scheme and the host that the client asked for."""
    asked = [(pattern("^[A-Za-z][A-Za-z0-9+.-]*://[^/]"), "$host")]
    maps.map("$request_uri", "mk_named_host", asked, default="$http_host")
    trusted = Block()
    trusted.add("default", "0")
    for network in _networks(edge):
        trusted.add(network, "1")
    maps.block("geo $realip_remote_addr $mk_trusted", trusted)
    schemes = [(pattern(f"^1:{one}$"), one) for one in ("http", "https")]
    maps.map('"$mk_trusted:$http_x_forwarded_proto"', "mk_scheme", schemes, default="$scheme")
    hosts = [(pattern(r"^1:(?<mk_told_host>[A-Za-z0-9._\[\]:-]{1,255})$"), "$mk_told_host")]
    maps.map('"$mk_trusted:$http_x_forwarded_host"', "mk_asked_host", hosts, default="$mk_named_host")


def _networks(edge: Edge) -> list[str]:
    return [
        one for entry in edge.trusted_proxies for one in (("0.0.0.0/0", "::/0") if entry == "*" else (word(entry),))
    ]


def _upstream(http: Block, upstream: EdgeUpstream, placement: Placement) -> None:
    name, inner = upstream_name(upstream.name), Block()
    inner.add("zone", name, "128k")
    if len(upstream.servers) > 1:
        inner.add("random", "two", "least_conn")
    for server, weight in upstream.servers:
        resolved = ["resolve"] if is_name(server) and placement.resolver else []
        inner.add("server", word(server), *([f"weight={weight}"] if weight != 1 else []), *_EJECT, *resolved)
    inner.add("keepalive", _KEPT)
    http.block(f"upstream {name}", inner)


def _server(edge: Edge, placement: Placement, matching: Matching, passing: Passing) -> Block:
    server = Block()
    server.add("listen", placement.listen)
    server.add("server_name", "_")
    server.add("root", "/nonexistent")
    server.add("default_type", "application/problem+json")
    largest = max([edge.own_body_limit, *(one.body_limit for one in edge.routes)])
    server.add("client_max_body_size", str(largest))
    for network in _networks(edge):
        server.add("set_real_ip_from", network)
    if edge.trusted_proxies:
        server.add("real_ip_header", "X-Forwarded-For")
        server.add("real_ip_recursive", "on")
    server.add("limit_req_status", "429")
    server.add("limit_req_log_level", "notice")
    server.add("recursive_error_pages", "on")
    for line in error_pages():
        server.add(*line)
    server.add("proxy_http_version", "1.1")
    server.add("proxy_pass_request_headers", "off")
    server.add("proxy_redirect", "off")
    server.add("proxy_max_temp_file_size", "0")
    for name, value in passing.request_headers():
        server.add("proxy_set_header", name, value)
    for name, value in (*passing.answers, ("WWW-Authenticate", "$mk_told_challenge"), ("Allow", "$mk_allow")):
        server.add("add_header", name, value, "always")
    server.lines += ["if ($mk_unreadable) {", f"    return 400 {document(400, _UNREADABLE)};", "}"]
    if "*" not in edge.hosts:
        server.lines += ["if ($mk_misled) {", f"    return 421 {document(421)};", "}"]
    server.add("set", "$mk_target", "$mk_path")
    server.lines += ["", *matching.locations.lines, *passing.places.lines]
    _refusals(server, matching)
    return server


def _refusals(server: Block, matching: Matching) -> None:
    # nginx knows a variable only where something sets it.
    names = " ".join(
        f'set $mk_{name} "";' for name in ("allow", "challenge", "host", "kept", "route", "timeout_ms", "user")
    )
    places = [(f"{INTERNAL}/names", f"{names} return 404;"), (f"{INTERNAL}/none", "return 404;")]
    for allowed, name in matching.refusals.items():
        places.append((f"{INTERNAL}/{name}", f"set $mk_allow {word(allowed)}; return 405;"))
    places += [(f"{INTERNAL}/problem/{status}", f"return {status} {document(status)};") for status in statuses()]
    for path, what in places:
        server.lines += [
            "",
            f"location = {path} {{",
            "    internal;",
            "    client_max_body_size 0;",
            f"    {what}",
            "}",
        ]
