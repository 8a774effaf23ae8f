"""A breaker of the route's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from microkit.errors import DefinitionError, Problem
from microkit.gateway.exchange import Answer, Exchange, Handler
from microkit.gateway.filters.port import Filter, Phase, Tools
from microkit.resilience.breaker import Breaker


@dataclass(frozen=True, slots=True)
class CircuitBreaker(Filter):
    """``CircuitBreaker(failures=5, reset=10)``: after five failures of this route in a row it answers 503 at once, and
    after ten seconds lets one request through to see. Each service has a breaker in any case, and each of its
    instances; this one is for a route that fails by itself, such as a slow search, and should not open that of its
    service's others. Failures are answers of 500 and above and those that did not come; 4xx, full (503 with
    ``Retry-After``) and clients that hang up are none. Put a :class:`Fallback` before it to answer something instead.
    """

    kind: ClassVar[str] = "circuit-breaker"
    phase: ClassVar[Phase] = Phase.UPSTREAM

    failures: int = 5
    reset: float = 5.0

    def __post_init__(self) -> None:
        if self.failures < 1 or not self.reset > 0:
            raise DefinitionError(f"circuit-breaker: {self} never closes, or never opens")

    def around(self, inner: Handler, tools: Tools) -> Handler:
        key = (CircuitBreaker, tools.route, self.failures, self.reset)
        breaker = tools.shared.get(key)
        if breaker is None:
            breaker = tools.shared[key] = Breaker(f"route {tools.route}", failures=self.failures, reset=self.reset)
            state = tools.telemetry.metrics.gauge(
                "gateway_breaker_state", "The route's own breaker: 0 closed, 1 half open, 2 open.", ("http_route",)
            )
            state(tools.route).set_function(lambda: int(breaker.state))

        async def guarded(exchange: Exchange) -> Answer:
            ticket = breaker.enter()
            tell = breaker.left
            try:
                answer = await inner(exchange)
                if answer.status < 500:
                    tell = breaker.succeeded
                elif answer.status != 503 or answer.header(b"retry-after") is None:
                    tell = breaker.failed
            except Problem as problem:
                tell = breaker.succeeded if problem.status < 500 else breaker.failed
                raise
            finally:
                tell(ticket)
            return answer

        return guarded
