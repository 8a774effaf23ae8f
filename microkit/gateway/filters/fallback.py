"""What is answered instead, while a service cannot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import orjson

from microkit.errors import DefinitionError, Problem
from microkit.gateway.body import RequestBody
from microkit.gateway.exchange import Answer, Exchange, Handler
from microkit.gateway.filters.port import Filter, Phase, Tools


@dataclass(frozen=True, slots=True)
class Fallback(Filter):
    """``Fallback(body={"bills": []})`` answers instead of a service that failed (its breaker is open, it cannot be
    reached, did not answer, or answers one of ``statuses``); ``Fallback(service="bills-archive")`` asks another one,
    for safe methods only. ``status`` is that of the answer, which says ``X-Fallback: 1`` and ``Cache-Control:
    no-store``.
    """

    kind: ClassVar[str] = "fallback"
    phase: ClassVar[Phase] = Phase.UPSTREAM

    body: Any = field(default=None, hash=False)
    status: int = 200
    service: str = ""
    statuses: tuple[int, ...] = (502, 503, 504)
    headers: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "statuses", tuple(self.statuses))
        if (self.body is None) == (not self.service):
            raise DefinitionError("fallback: give it a body to answer, or a service to ask; one of them")

    def around(self, inner: Handler, tools: Tools) -> Handler:
        used = tools.telemetry.metrics.counter(
            "gateway_fallback_total", "Answers given instead of a service's.", ("http_route",)
        )

        async def instead(exchange: Exchange) -> Answer:
            if self.service and not (exchange.safe and exchange.body is None):
                return await inner(exchange)
            try:
                answer = await inner(exchange)
            except Problem as problem:
                if problem.status not in self.statuses or _half_sent(exchange):
                    raise
            else:
                if answer.status not in self.statuses:
                    return answer
                if answer.close is not None:
                    answer.close()
            used(tools.route).inc()
            if self.service:
                exchange.service = self.service
                found = await tools.send(exchange)
            else:
                found = Answer(self.status, [(b"content-type", b"application/json")], orjson.dumps(self.body))
                found.headers += [(name.lower().encode(), value.encode()) for name, value in self.headers.items()]
                found.set(b"cache-control", b"no-store")
            found.set(b"x-fallback", b"1")
            return found

        return instead


def _half_sent(exchange: Exchange) -> bool:
    """Whether the client's own body is what failed: that is no reason to answer as if nothing had happened."""
    return isinstance(exchange.body, RequestBody) and exchange.body.problem is not None
