"""Rate limits of operations: whose bucket a request takes from, and what its caller is told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from microkit.errors import DefinitionError
from microkit.proxies import ClientAddress, Proxies
from microkit.resilience.rate import Limit, MemoryRateLimiter, Policy, RateLimiter, network_of
from microkit.telemetry import Telemetry
from microkit.web.call import Call


class RateLimits:
    """The limits of one service, by the names of its routes: ``Billing.create``, or ``POST /path`` of an inline one."""

    def __init__(self, limits: Mapping[str, Limit], resources: Mapping[Any, Any], telemetry: Telemetry) -> None:
        self._policies = {name: Policy(name, limit) for name, limit in limits.items()}
        self._limiter: RateLimiter = resources.get(RateLimiter) or MemoryRateLimiter()
        proxies = resources.get(ClientAddress)
        self._proxies = proxies if isinstance(proxies, Proxies) else Proxies(())
        self._counted = telemetry.metrics.counter(
            "http_server_rate_limited_requests_total",
            "Requests under a rate limit, by what became of them; uncounted: its store was away.",
            ("policy", "outcome"),
        )

    def of(self, name: str) -> Policy | None:
        """The policy of a route."""
        return self._policies.get(name)

    def check(self, names: set[str]) -> None:
        """Refuses limits of routes that are not there.

        Raises:
            DefinitionError: there is one.
        """
        if unknown := self._policies.keys() - names:
            raise DefinitionError(
                f"there is a rate limit for {sorted(unknown)[0]!r}, and no such operation; there are: "
                f"{', '.join(sorted(names))}"
            )

    async def take(self, policy: Policy, call: Call) -> None:
        """Counts the call, and notes what its caller is told.

        Raises:
            TooManyRequests: it is one too many.
        """
        verdict = await self._limiter.take(f"{policy.name}:{self._whose(policy.limit, call)}", policy.limit)
        if not verdict.allowed:
            self._counted(policy.name, "limited").inc()
            raise policy.refusal(verdict)
        self._counted(policy.name, "passed" if verdict.counted else "uncounted").inc()
        call.more_headers = policy.fields(verdict)

    def _whose(self, limit: Limit, call: Call) -> str:
        if limit.by == "everybody":
            return "*"
        if limit.by == "principal" and not call.principal.anonymous:
            return f"principal:{call.principal.subject}"
        return f"address:{network_of(self._proxies.caller(call.scope).address)}"
