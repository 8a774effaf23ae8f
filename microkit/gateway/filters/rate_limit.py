"""How often somebody may ask."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv6Network
from typing import ClassVar, Literal

from microkit.errors import DefinitionError, Problem
from microkit.gateway.exchange import Answer, Exchange, Handler
from microkit.gateway.filters.port import Filter, Phase, Tools
from microkit.resilience.rate import Limit, MemoryRateLimiter, Policy, RateLimiter, Verdict


@lru_cache(maxsize=4096)
def _place(address: str) -> str:
    """Whose address it is: of IPv6 its /64, which is what one subscriber gets at least."""
    try:
        return str(IPv6Network((address, 64), strict=False)) if ":" in address else address
    except ValueError:
        return address


By = Literal["user", "key", "address", "everybody"]


@dataclass(frozen=True, slots=True)
class RateLimit(Filter):
    """``RateLimit("60/m burst=20")``: a token bucket for each caller, over all instances where the service's
    ``rate_limit_url`` names a Redis.

    ``by`` is whose bucket it is: the signed-in ``user``'s (the address's for those who are not), the API ``key``'s (as
    before, without one), the client's ``address`` (of IPv6 the /64), or one for ``everybody``. By address it is looked
    at before the token is. ``away`` says what holds while the store is away: ``open`` lets pass, ``local`` goes on
    counting in each instance; take that for log-ins and one-time passwords. Answers carry ``RateLimit`` and
    ``RateLimit-Policy`` (draft-ietf-httpapi-ratelimit-headers), refusals are 429 with ``Retry-After``. ``name`` is
    what clients see, and routes with the same name share the buckets; without one each route has its own.
    """

    kind: ClassVar[str] = "rate-limit"

    limit: str
    by: By = "user"
    away: Literal["open", "local"] = "open"
    name: str = ""

    def __post_init__(self) -> None:
        if self.by not in {"user", "key", "address", "everybody"} or self.away not in {"open", "local"}:
            raise DefinitionError(f"rate-limit: by={self.by!r}, away={self.away!r}: {type(self).__doc__}")
        self.parsed()

    @property
    def phase(self) -> Phase:  # type: ignore[override]  # whom it counts decides where it can stand
        return Phase.DOOR if self.by in {"address", "everybody"} else Phase.ADMISSION

    def parsed(self) -> Limit:
        """The limit that ``limit`` writes.

        Raises:
            DefinitionError: it writes none.
        """
        try:
            read = Limit.parse(self.limit)
            return Limit(read.requests, read.per, read.burst, by="everybody", away=self.away)
        except ValueError as error:
            raise DefinitionError(f"rate-limit: {error}") from None

    def around(self, inner: Handler, tools: Tools) -> Handler:
        policy = Policy(self.name or "default", self.parsed())
        prefix = f"gateway:{self.name or tools.route}:{self.by}:"
        limiter: RateLimiter = tools.shared[RateLimiter]
        here = limiter if isinstance(limiter, MemoryRateLimiter) else None
        refused = tools.telemetry.metrics.counter(
            "gateway_rate_limited_total", "Requests refused by a rate limit.", ("http_route", "policy")
        )
        own, by, limit = self.name or "default", self.by, policy.limit

        def whose(exchange: Exchange) -> str:
            if by == "everybody":
                return prefix
            if by == "key" and exchange.key:
                return f"{prefix}k:{exchange.key}"
            if by != "address" and exchange.principal.subject:
                return f"{prefix}u:{exchange.principal.subject}"
            return f"{prefix}a:{_place(exchange.address)}"

        async def limited(exchange: Exchange) -> Answer:
            key = whose(exchange)
            verdict: Verdict = here.take_now(key, limit) if here is not None else await limiter.take(key, limit)
            if not verdict.allowed:
                refused(tools.route, own).inc()
                raise policy.refusal(verdict)
            try:
                answer = await inner(exchange)
            except Problem as problem:
                for name, value in policy.fields(verdict):
                    problem.headers.setdefault(name.decode(), value.decode())
                raise
            answer.headers.extend(policy.fields(verdict))
            return answer

        return limited
