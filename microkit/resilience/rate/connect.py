"""From a URL to a rate limiter."""

from __future__ import annotations

from microkit.errors import ConfigurationError
from microkit.resilience.rate.failover import Failover
from microkit.resilience.rate.memory import MemoryRateLimiter
from microkit.resilience.rate.port import RateLimiter


def connect(url: str) -> RateLimiter:
    """The limiter that a URL names. It connects with the first request, and answers while its store is away.

    Raises:
        ConfigurationError: the URL names none, or what redis-py cannot use.
        MissingExtra: redis-py is not installed.
    """
    scheme = url.partition("://")[0]
    if url == "memory://":
        return MemoryRateLimiter()
    if scheme in {"redis", "rediss"}:
        from microkit.resilience.rate.redis import RedisRateLimiter  # noqa: PLC0415  an extra

        return Failover(RedisRateLimiter(url))
    raise ConfigurationError("rate_limit_url names no store: write memory://, redis://redis:6379/0 or rediss://…")
