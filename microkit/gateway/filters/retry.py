"""Asking again, where that can do no harm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from microkit.errors import DefinitionError
from microkit.gateway.exchange import Answer, Exchange, Handler
from microkit.gateway.filters.port import Filter, Phase, Tools


@dataclass(frozen=True, slots=True)
class Retry(Filter):
    """``Retry(attempts=3)``: a safe request (GET, HEAD, OPTIONS) whose service broke off, or answered one of
    ``statuses``, is sent again, to another instance where there is one, ``attempts`` times in all, after a random
    pause of up to ``backoff`` seconds, doubled each time, or the service's ``Retry-After`` where it is shorter than
    the time that is left. All of it stays within the retry budget of the service (20 % of its requests, 10 a second
    besides).

    An unsafe request is never sent twice once a byte of it has gone out, unless it is ``keyed`` and carries an
    ``Idempotency-Key``: say so only where the service keeps what it answered to a key, as microkit's services do for
    operations that take a ``Transaction``, do not stream, and have no secret in their body. Its body must have come in
    one piece. Where no connection could be made nothing has gone out, so another instance is asked in any case, with
    this filter or without.
    """

    kind: ClassVar[str] = "retry"
    phase: ClassVar[Phase] = Phase.UPSTREAM

    attempts: int = 3
    statuses: tuple[int, ...] = (502, 503, 504)
    backoff: float = 0.05
    keyed: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "statuses", tuple(self.statuses))
        if not 2 <= self.attempts <= 10 or self.backoff < 0:
            raise DefinitionError(f"retry: {self.attempts} attempts; from 2 to 10, the first included")

    def around(self, inner: Handler, tools: Tools) -> Handler:
        statuses = frozenset(self.statuses)

        async def patient(exchange: Exchange) -> Answer:
            exchange.attempts, exchange.retry_on, exchange.backoff = self.attempts, statuses, self.backoff
            exchange.keyed = self.keyed
            return await inner(exchange)

        return patient
