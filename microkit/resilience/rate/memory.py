"""Buckets of one process, on its monotonic clock: whoever sets the machine's clock changes nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from heapq import nsmallest

from microkit.resilience.rate.limit import Limit, Verdict, fits, verdict
from microkit.resilience.rate.port import check_cost


class MemoryRateLimiter:
    """Counts in this process alone; several instances each give the whole limit.

    The generic cell rate algorithm: of a bucket only the time is kept at which it will be full (ITU-T I.371). A full
    bucket is not kept at all, and at most ``most`` are: above that, those that are nearest to full are forgotten.
    """

    def __init__(self, *, most: int = 100_000, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._full_at: dict[str, float] = {}
        self._sweep_at = 1024

    def __len__(self) -> int:
        return len(self._full_at)

    async def take(self, key: str, limit: Limit, cost: int = 1) -> Verdict:
        return self.take_now(key, limit, cost)

    def take_now(self, key: str, limit: Limit, cost: int = 1) -> Verdict:
        """As :meth:`take`, which has nothing to wait for."""
        if cost != 1:
            check_cost(limit, cost)
        now = self._clock()
        full_at = self._full_at.get(key, now)
        ahead = full_at - now if full_at > now else 0.0
        if not fits(limit, ahead, cost):
            return verdict(limit, ahead, cost, allowed=False)
        if cost:
            ahead += cost * limit.spacing
            self._full_at[key] = now + ahead
            if len(self._full_at) > self._sweep_at:
                self._sweep(now)
        return verdict(limit, ahead, cost, allowed=True)

    async def close(self) -> None:
        self._full_at.clear()

    def _sweep(self, now: float) -> None:
        """Forgets what is full. The next sweep comes when as many again are there, so that a key costs the same."""
        self._full_at = {key: full for key, full in self._full_at.items() if full > now}
        if len(self._full_at) > self._most:
            # Who comes with ever new keys pushes out buckets that have hardly been used, and its own among them.
            over = len(self._full_at) - self._most * 9 // 10
            for key in nsmallest(over, self._full_at, key=self._full_at.__getitem__):
                del self._full_at[key]
        self._sweep_at = min(self._most, max(1024, 2 * len(self._full_at)))
