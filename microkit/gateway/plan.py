"""A route, ready: its filters and the token check, folded into one handler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from microkit.errors import DefinitionError
from microkit.gateway.exchange import Answer, Exchange, Handler
from microkit.gateway.filters.port import Filter, Phase, Tools
from microkit.gateway.filters.size_limit import SizeLimit
from microkit.gateway.identity import Identity, Verify
from microkit.gateway.report import RouteReport
from microkit.gateway.route import Route
from microkit.telemetry import Telemetry

_OF_HANDSHAKES: Final = frozenset(Phase) - {Phase.CACHE, Phase.UPSTREAM}


@dataclass(frozen=True, slots=True)
class Makings:
    """What plans are made with; it lives as long as the bound gateway."""

    telemetry: Telemetry
    verify: Verify | None
    setting: Callable[[str], Any]
    send: Handler
    shared: dict[object, Any]


@dataclass(frozen=True, slots=True)
class Plan:
    """``handler`` answers what takes the route, ``handshake`` lets a WebSocket pass, or raises."""

    route: Route
    handler: Handler
    handshake: Handler
    filters: tuple[Filter, ...]
    report: RouteReport


def plan(route: Route, filters: Sequence[Filter], makings: Makings, report: RouteReport) -> Plan:
    """The route with the gateway's ``filters`` before its own.

    Within a phase the first written is the outermost; the phases themselves stand in their fixed order.

    Raises:
        DefinitionError: a filter stands there twice.
        ConfigurationError: a filter misses a setting.
    """
    chain = sorted((*filters, *route.filters), key=lambda one: one.phase)
    for one in chain:
        if chain.count(one) > 1:
            raise DefinitionError(f"The route {route.title} has the filter {one.kind} twice")
    tools = Tools(route.prefix, route.title, makings.telemetry, makings.setting, makings.shared, makings.send)
    handler = makings.send
    if route.answer_limit is not None:
        handler = SizeLimit(response=route.answer_limit).around(handler, tools)
    return Plan(
        route,
        _folded(chain, route, makings, tools, handler),
        _folded([one for one in chain if one.phase in _OF_HANDSHAKES], route, makings, tools, _switched),
        tuple(chain),
        report,
    )


def _folded(chain: Sequence[Filter], route: Route, makings: Makings, tools: Tools, innermost: Handler) -> Handler:
    handler = innermost
    for one in reversed([one for one in chain if one.phase > Phase.IDENTITY]):
        handler = one.around(handler, tools)
    handler = Identity(route, makings.verify, handler).answer
    for one in reversed([one for one in chain if one.phase <= Phase.IDENTITY]):
        handler = one.around(handler, tools)
    return handler


async def _switched(_: Exchange) -> Answer:
    return Answer(101, [])
