"""Which route takes a request: a location for each prefix, and where that is not enough a map of what else is demanded.

A predicate is a variable that is 1 or 0; a map over those of a place picks the route, in the order of the gateway's own
table. No value of a request is ever joined with another, so none can pass for another.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import unquote

from microkit.errors import ConfigurationError
from microkit.gateway.rendering.edge import Edge
from microkit.gateway.rendering.nginx.text import Block, Variable, pattern, spelled, word, worded
from microkit.gateway.route import Route
from microkit.gateway.table import RouteTable

INTERNAL = "/.microkit"
"""Where the configuration's own locations are; no client reaches them."""

_VARIABLE_NAME = re.compile(r"[A-Za-z0-9-]+")
_TEMPLATE = re.compile(r"\\\{[^}]*?(:path)?\\\}")
_BELOW = "/\x00"
"""What no route's prefix holds: a path below the prefix."""


class Matching:
    """Maps (for ``http``) and locations (for ``server``) that lead each request to ``/.microkit/<route>``."""

    def __init__(self, edge: Edge) -> None:
        self.maps = Block()
        self.locations = Block()
        self.refusals: dict[str, str] = {}
        """The names of locations that answer 405, by what they say is allowed."""
        self._table = RouteTable([one.route for one in edge.routes])
        self._names = {id(one.route): one.id for one in edge.routes}
        self._bits: dict[tuple[str, str, str], str] = {}
        self._own = [_template(path) for path in edge.own_paths]
        self._picks = 0
        self._shares: dict[tuple[str, ...], str] = {}
        for path in edge.own_paths:
            self._own_location(path)
        for prefix in sorted({route.prefix for route in self._table.routes}):
            self._places(prefix, [route for route in self._table.routes if route.prefix == prefix])
        if not any(route.prefix == "/" and not route.exact for route in self._table.routes):
            self._location("/", "none")

    def _own_location(self, path: str) -> None:
        inner = Block()
        inner.add("rewrite", "^", f"{INTERNAL}/own", "last")
        if "{" in path:
            self.locations.block(f"location ~ {word(_template(path).pattern)}", inner)
        else:
            self.locations.block(f"location = {_place(path)}", inner)

    def _places(self, prefix: str, routes: Sequence[Route]) -> None:
        if prefix.startswith(INTERNAL):
            raise ConfigurationError(f"nginx: {prefix} is what the configuration calls its own places; take another")
        below = any(not route.exact for route in routes)
        # "/" alone is a prefix like any other; of the others, what stands below begins with one more slash.
        if prefix != "/" or any(route.exact for route in routes):
            if not any(own.fullmatch(prefix) for own in self._own):
                self._location(f"= {_place(prefix)}", self._target(prefix))
            elif not any(own.pattern == _template(prefix).pattern for own in self._own):
                self._location(f"= {_place(prefix)}", "own")
        if below:
            at = prefix if prefix == "/" else f"{prefix}/"
            self._location(_place(at), self._target(prefix.removesuffix("/") + _BELOW))

    def _location(self, head: str, target: str) -> None:
        inner = Block()
        inner.add(
            "rewrite", "^", word(f"{INTERNAL}/") + target if target.startswith("$") else f"{INTERNAL}/{target}", "last"
        )
        self.locations.block(f"location {head}", inner)

    def _target(self, path: str) -> str:
        """Where requests of this path go: a name, or the variable that holds one."""
        entries, default = self._decisions(path)
        if not entries:
            return default
        used = sorted({bit for bits, _ in entries for bit in bits})
        self._picks += 1
        pick = f"mk_pick_{self._picks}"
        source = worded(*(Variable(bit) for bit in used))
        keyed = [("^" + "".join("1" if bit in bits else "." for bit in used) + "$", target) for bits, target in entries]
        self.maps.map(source, pick, [(pattern(key), target) for key, target in keyed], default=default)
        return f"${pick}"

    def _decisions(self, path: str) -> tuple[list[tuple[frozenset[str], str]], str]:
        """What must be so, and where it leads, in order; and where the rest goes."""
        entries: list[tuple[frozenset[str], str]] = []
        for group in self._table.standing(path):
            for routes in group:
                bits = self._predicates(routes[0])
                if routes[0].methods:
                    bits |= {self._method(routes[0].methods)}
                if not bits:
                    return entries, self._share(routes)
                entries.append((frozenset(bits), self._share(routes)))
            for routes in group:
                if not routes[0].methods:
                    continue
                bits = self._predicates(routes[0])
                also = [one[0] for one in group if one[0].methods and self._predicates(one[0]) <= bits]
                refusal = self._refusal({method for one in also for method in one.methods})
                if not bits:
                    return entries, refusal
                entries.append((frozenset(bits), refusal))
        return entries, "none"

    def _share(self, routes: Sequence[Route]) -> str:
        names = tuple(self._names[id(route)] for route in routes)
        if len(names) == 1:
            return names[0]
        if names not in self._shares:
            self._shares[names] = variable = f"mk_share_{len(self._shares) + 1}"
            inner, total = Block(), sum(route.weight for route in routes)
            for name, route in zip(names[:-1], routes[:-1], strict=True):
                inner.add(f"{route.weight * 100 / total:.2f}%", name)
            inner.add("*", names[-1])
            self.maps.block(f'split_clients "$mk_caller" ${variable}', inner)
        return f"${self._shares[names]}"

    def _refusal(self, methods: set[str]) -> str:
        return self.refusals.setdefault(", ".join(sorted(methods)), f"refused{len(self.refusals) + 1}")

    def _predicates(self, route: Route) -> set[str]:
        bits = set()
        if route.host:
            plain = re.escape(route.host.removeprefix("*"))
            bits.add(self._bit("$host", f"{'' if route.host.startswith('*.') else '^'}{plain}$", "host"))
        for name, value in route.demanded.items():
            if not _VARIABLE_NAME.fullmatch(name):
                raise ConfigurationError(f"nginx: {route.title}: it cannot look at a header that is called {name!r}")
            source = f"$http_{name.lower().replace('-', '_')}"
            bits.add(self._bit(source, _begins(value), "header"))
        for name, value in route.query.items():
            bits.add(self._bit("$args", _queried(name, value), "query"))
        return bits

    def _method(self, methods: Sequence[str]) -> str:
        return self._bit("$request_method", f"^(?:{'|'.join(re.escape(one) for one in sorted(methods))})$", "method")

    def _bit(self, source: str, expression: str, kind: str) -> str:
        key = (source, expression, kind)
        if key not in self._bits:
            self._bits[key] = name = f"mk_{kind}_{len(self._bits) + 1}"
            self.maps.map(source, name, [(pattern(expression), "1")], default="0")
        return self._bits[key]


def _begins(value: str) -> str:
    text = re.escape(value.removesuffix("*"))
    if value == "*":
        return "."
    return f"^{text}" if value.endswith("*") else f"^{text}$"


def _queried(name: str, value: str) -> str:
    before = f"(?:^|&){spelled(name, query=True)}"
    if value == "*":
        return f"{before}(?:[=&]|$)"
    text = spelled(value.removesuffix("*"), query=True)
    return f"{before}={text}" if value.endswith("*") else f"{before}={text}(?:&|$)"


def _place(path: str) -> str:
    """A location's path: nginx compares what it has decoded."""
    return word(unquote(path))


def _template(path: str) -> re.Pattern[str]:
    """The paths of a template: ``{id}`` is one segment, ``{rest:path}`` what follows."""
    return re.compile(f"^{_TEMPLATE.sub(lambda found: '.+' if found[1] else '[^/]+', re.escape(path))}$")
