"""How long the service may take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from microkit.errors import DefinitionError
from microkit.gateway.exchange import Answer, Exchange, Handler
from microkit.gateway.filters.port import Filter, Phase, Tools


@dataclass(frozen=True, slots=True)
class TimeLimit(Filter):
    """``TimeLimit(2.0)``: seconds for the service to answer, where the route's ``timeout`` and the caller's deadline
    are longer. One for all routes is what the gateway's filters are for. The service is told what remains."""

    kind: ClassVar[str] = "time-limit"
    phase: ClassVar[Phase] = Phase.UPSTREAM

    seconds: float

    def __post_init__(self) -> None:
        if not 0 < self.seconds < 86_400:
            raise DefinitionError(f"time-limit: {self.seconds} s is no time to wait")

    def around(self, inner: Handler, tools: Tools) -> Handler:
        async def timed(exchange: Exchange) -> Answer:
            exchange.timeout = min(exchange.timeout, self.seconds)
            return await inner(exchange)

        return timed
