"""Finds the route of a request: one dictionary look-up a segment of the path, with ten routes or a thousand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl
from zlib import crc32

from microkit.errors import DefinitionError, MethodNotAllowed, NotFound
from microkit.gateway.route import Route

_SHARES: Final = 1 << 32
_NOTHING: Final = "Nothing is offered under this path"


class Asked(NamedTuple):
    """What of a request decides about its route. ``headers`` by lower-case name; ``caller``: one for each caller."""

    method: str
    host: str
    headers: Mapping[bytes, bytes]
    query: bytes
    caller: bytes


@dataclass(frozen=True, slots=True)
class _Rule:
    """Routes of one prefix with the same predicates: one, or several that share the requests by weight."""

    routes: tuple[Route, ...]
    methods: frozenset[str]
    host: str
    suffix: str
    headers: tuple[tuple[bytes, bytes], ...]
    query: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, routes: tuple[Route, ...]) -> _Rule:
        first = routes[0]
        wildcard = first.host.startswith("*.")
        return cls(
            routes,
            frozenset(first.methods),
            "" if wildcard else first.host,
            first.host[1:] if wildcard else "",
            tuple((name.encode(), value.encode()) for name, value in first.demanded.items()),
            tuple(first.query.items()),
        )

    @property
    def plain(self) -> bool:
        return not (self.host or self.suffix or self.headers or self.query)

    def takes(self, asked: Asked) -> bool:
        """Whether everything but the method fits."""
        if self.host and self.host != asked.host:
            return False
        if self.suffix and not asked.host.endswith(self.suffix):
            return False
        for name, wanted in self.headers:
            value = asked.headers.get(name)
            if value is None or not _fits(value, wanted, b"*"):
                return False
        if self.query:
            given = parse_qsl(asked.query.decode("latin-1"), keep_blank_values=True, max_num_fields=200)
            for name_, wanted_ in self.query:
                if not any(name_ == key and _fits(value_, wanted_, "*") for key, value_ in given):
                    return False
        return True

    def route(self, asked: Asked) -> Route:
        """The route that takes it. Of several the one that this caller always gets."""
        if len(self.routes) == 1:
            return self.routes[0]
        place = crc32(asked.caller) * sum(route.weight for route in self.routes) // _SHARES
        for route in self.routes:
            place -= route.weight
            if place < 0:
                return route
        return self.routes[-1]


class RouteTable:
    """All routes of a gateway.

    Raises:
        DefinitionError: a request could take two of them, or none could ever take one.
    """

    def __init__(self, routes: Sequence[Route]) -> None:
        self._below: dict[str, tuple[_Rule, ...]] = {}
        self._exact: dict[str, tuple[_Rule, ...]] = {}
        self.routes = tuple(routes)
        at: dict[tuple[str, bool], list[Route]] = {}
        for route in routes:
            at.setdefault((route.prefix, route.exact), []).append(route)
        for (prefix, exact), siblings in at.items():
            (self._exact if exact else self._below)[prefix] = _ordered(siblings)
        # Of each prefix the only route, where it demands nothing but a method.
        self._alone = {prefix: _alone(rules) for prefix, rules in self._below.items()}

    def find(self, path: str) -> tuple[Route, ...]:
        """The routes of the longest prefix that holds ``path``, the more demanding first; none where none does."""
        rules = next(iter(self._at(path)), ())
        return tuple(route for rule in rules for route in rule.routes)

    def match(self, path: str, asked: Asked) -> Route:
        """The route that takes the request.

        Raises:
            NotFound: none does.
            MethodNotAllowed: one does, with another method.
        """
        for rules in self._at(path):
            allowed: set[str] = set()
            for rule in rules:
                if rule.plain or rule.takes(asked):
                    if not rule.methods or asked.method in rule.methods:
                        return rule.routes[0] if len(rule.routes) == 1 else rule.route(asked)
                    allowed |= rule.methods
            if allowed:
                raise MethodNotAllowed(headers={"Allow": ", ".join(sorted(allowed))})
        raise NotFound(_NOTHING)

    def by_path(self, path: str, method: str) -> Route | None:
        """What :meth:`match` finds, where path and method alone decide, as they nearly always do; else ``None``, which
        says nothing."""
        if self._exact and path in self._exact:
            return None
        end, alone = len(path), self._alone
        while end > 0:
            prefix = path[:end]
            if prefix in alone:
                found = alone[prefix]
                return found if found is not None and (not found.methods or method in found.methods) else None
            end = path.rfind("/", 0, end)
        found = alone.get("/")
        return found if found is not None and (not found.methods or method in found.methods) else None

    def standing(self, path: str) -> list[list[tuple[Route, ...]]]:
        """What :meth:`match` looks at for ``path``, for those who write the table down for another proxy: the prefixes
        from the longest on, of each its rules in their order, of each rule the routes that share its requests."""
        return [[rule.routes for rule in rules] for rules in self._at(path)]

    def _at(self, path: str) -> Iterable[tuple[_Rule, ...]]:
        if self._exact and (found := self._exact.get(path)):
            yield found
        end, below = len(path), self._below
        while end > 0:
            if found := below.get(path[:end]):
                yield found
            end = path.rfind("/", 0, end)
        if found := below.get("/"):
            yield found


def _fits(value: Any, wanted: Any, star: Any) -> bool:
    return bool(value.startswith(wanted[:-1]) if wanted.endswith(star) else value == wanted)


def _ordered(siblings: Sequence[Route]) -> tuple[_Rule, ...]:
    """The rules of one prefix, the more demanding first."""
    same: dict[object, list[Route]] = {}
    for route in siblings:
        key = (frozenset(route.methods), route.host, *(frozenset(one.items()) for one in (route.demanded, route.query)))
        same.setdefault(key, []).append(route)
    for twins in same.values():
        if len(twins) > 1 and not all(route.weight for route in twins):
            raise DefinitionError(
                f"Two routes take {twins[0].prefix!r} with the same methods and predicates: {twins[0].title} and "
                f"{twins[1].title}. Take one away, or give each a weight to share the requests"
            )
    rules = [(routes[0], tuple(routes)) for routes in same.values()]
    for (one, _), (other, _) in combinations(rules, 2):
        ordered = _implies(one, other) or _implies(other, one)
        if not ordered and _meet(one, other) and not any(_covers(third, one, other) for third, _ in rules):
            raise DefinitionError(
                f"A request can take two routes at {one.prefix!r}, and neither says more than the other: {one.title}, "
                f"and {other.title}. Give one of them all predicates of the other, or add a route with those of both"
            )
    rules.sort(key=lambda rule: _demands(rule[0]), reverse=True)
    _check_shadows([route for route, _ in rules])
    return tuple(_Rule.of(routes) for _, routes in rules)


def _alone(rules: Sequence[_Rule]) -> Route | None:
    first = rules[0]
    return first.routes[0] if len(rules) == 1 and first.plain and len(first.routes) == 1 else None


def _demands(route: Route) -> tuple[int, int, int]:
    """How much a route demands: what implies another has more."""
    values = (*route.demanded.values(), *route.query.values())
    known = sum(2 * len(value.removesuffix("*")) + (not value.endswith("*")) for value in values)
    host = 2 * len(route.host.removeprefix("*")) + (not route.host.startswith("*."))
    return len(values) + bool(route.methods) + bool(route.host), host + known, -len(route.methods)


def _meet(one: Route, other: Route) -> bool:
    """Whether a request can fit both."""
    if one.methods and other.methods and not set(one.methods) & set(other.methods):
        return False
    if one.host and other.host and not (_host_implies(one.host, other.host) or _host_implies(other.host, one.host)):
        return False
    for mine, theirs in ((one.demanded, other.demanded), (one.query, other.query)):
        for name in mine.keys() & theirs.keys():
            if not (_value_implies(mine[name], theirs[name]) or _value_implies(theirs[name], mine[name])):
                return False
    return True


def _implies(one: Route, other: Route) -> bool:
    """Whether each request that fits ``one`` fits ``other`` as well."""
    if other.methods and not (one.methods and set(one.methods) <= set(other.methods)):
        return False
    if other.host and not (one.host and _host_implies(one.host, other.host)):
        return False
    return all(
        name in mine and _value_implies(mine[name], wanted)
        for mine, theirs in ((one.demanded, other.demanded), (one.query, other.query))
        for name, wanted in theirs.items()
    )


def _covers(third: Route, one: Route, other: Route) -> bool:
    """Whether ``third`` takes what fits both others, as it demands all that they do and no more."""
    if not (_implies(third, one) and _implies(third, other)):
        return False
    methods = [set(route.methods) for route in (one, other) if route.methods]
    both = set.intersection(*methods) if methods else set()
    return (
        (not third.methods or (bool(both) and both <= set(third.methods)))
        and third.host in {"", one.host, other.host}
        and third.demanded.items() <= one.demanded.items() | other.demanded.items()
        and third.query.items() <= one.query.items() | other.query.items()
    )


def _host_implies(one: str, other: str) -> bool:
    return one == other or (other.startswith("*.") and one.removeprefix("*").endswith(other[1:]))


def _value_implies(one: str, other: str) -> bool:
    return one == other or (other.endswith("*") and one.removesuffix("*").startswith(other[:-1]))


def _check_shadows(routes: Sequence[Route]) -> None:
    """No route may stand behind others that take each of its methods."""
    for place, route in enumerate(routes):
        before = [other for other in routes[:place] if _implies_but_methods(route, other)]
        taken = {method for other in before for method in other.methods}
        if any(not other.methods for other in before) or (route.methods and set(route.methods) <= taken):
            others = " and ".join(other.title for other in before)
            raise DefinitionError(f"No request can ever take the route {route.title}: all it fits is taken by {others}")


def _implies_but_methods(route: Route, other: Route) -> bool:
    """Whether what fits ``route`` fits ``other``, where their methods agree."""
    if other.host and not (route.host and _host_implies(route.host, other.host)):
        return False
    return all(
        name in mine and _value_implies(mine[name], wanted)
        for mine, theirs in ((route.demanded, other.demanded), (route.query, other.query))
        for name, wanted in theirs.items()
    )
