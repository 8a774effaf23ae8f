"""What happens to limits while their store is away: some count on in each instance, the others let pass."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from microkit.resilience.rate.limit import Limit, Verdict
from microkit.resilience.rate.memory import MemoryRateLimiter
from microkit.resilience.rate.port import RateLimiter

PAUSE: Final = 1.0
"""Seconds for which a store that failed is not asked; then one request tries it."""

_log = logging.getLogger(__name__)


class Failover:
    """A limiter that answers whatever becomes of ``store``, at once except for the one that notices.

    Limits with ``away="local"`` are counted here as well while all is fine, so that a store that goes away gives nobody
    a full bucket.
    """

    def __init__(
        self,
        store: RateLimiter,
        *,
        local: MemoryRateLimiter | None = None,
        pause: float = PAUSE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._local = local or MemoryRateLimiter()
        self._pause = pause
        self._clock = clock
        self._ask_again: float | None = None

    @property
    def away(self) -> bool:
        """Whether the store failed when it was last asked."""
        return self._ask_again is not None

    async def take(self, key: str, limit: Limit, cost: int = 1) -> Verdict:
        if self._ask_again is not None:
            now = self._clock()
            if now < self._ask_again:
                return self._instead(key, limit, cost)
            self._ask_again = now + self._pause  # this one asks, the others do not wait for what it hears
        try:
            found = await self._store.take(key, limit, cost)
        except ConnectionError as error:
            if self._ask_again is None:
                _log.warning(
                    "rate limits: their store is away, each instance counts for itself or not at all: %s", error
                )
            self._ask_again = self._clock() + self._pause
            return self._instead(key, limit, cost)
        if self._ask_again is not None:
            self._ask_again = None
            _log.info("rate limits: their store is back")
        if limit.away == "local" and found.allowed:
            self._local.take_now(key, limit, cost)
        return found

    async def close(self) -> None:
        await self._store.close()

    def _instead(self, key: str, limit: Limit, cost: int) -> Verdict:
        if limit.away == "local":
            return self._local.take_now(key, limit, cost)
        return Verdict(allowed=True, limit=limit, remaining=limit.burst, reset=0.0, counted=False)
