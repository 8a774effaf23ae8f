"""The retry budget: retries are a share of the calls, so that a failing service is not buried under them.

After Finagle's ``RetryBudget`` (https://finagle.github.io/blog/2016/02/08/retry-budgets/), which Linkerd uses: each
call deposits a fifth of a token that expires after ten seconds, each retry takes a whole one; ten retries a second are
free, for clients that call seldom. Finagle lends the free ones for ten seconds at once, here for one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

SHARE: Final = 0.2
FREE: Final = 10.0
_SLOTS: Final = 10
"""Seconds that a deposit lasts, counted in slots of one."""


class RetryBudget:
    """``share`` retries a call, and ``free`` a second besides."""

    __slots__ = ("_clock", "_earned", "_free", "_free_at", "_left", "_second", "_share", "_slots")

    def __init__(
        self, share: float = SHARE, free: float = FREE, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._share = share
        self._free = free
        self._clock = clock
        self._slots = [0.0] * _SLOTS
        self._earned = 0.0
        self._second = int(clock())
        self._left = max(1.0, free) if free else 0.0
        self._free_at = clock()

    def deposit(self) -> None:
        """A call is made."""
        second = int(self._clock())
        if second != self._second:
            self._expire(second)
        self._slots[second % _SLOTS] += self._share
        self._earned += self._share

    def withdraw(self) -> bool:
        """Whether a retry may be made now; if so it is paid for."""
        now = self._clock()
        second = int(now)
        if second != self._second:
            self._expire(second)
        if self._earned >= 1.0:
            self._take(second)
            return True
        most = max(1.0, self._free) if self._free else 0.0
        self._left = min(most, self._left + (now - self._free_at) * self._free)
        self._free_at = now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True

    def balance(self) -> float:
        """Tokens that are left."""
        second = int(self._clock())
        if second != self._second:
            self._expire(second)
        return self._earned + self._left

    def _take(self, second: int) -> None:
        """From the oldest deposits first: they expire first."""
        wanted = 1.0
        for age in range(_SLOTS - 1, -1, -1):
            slot = (second - age) % _SLOTS
            taken = min(self._slots[slot], wanted)
            self._slots[slot] -= taken
            wanted -= taken
            if wanted <= 0:
                break
        self._earned = max(0.0, self._earned - 1.0)

    def _expire(self, second: int) -> None:
        for passed in range(self._second + 1, min(second, self._second + _SLOTS) + 1):
            self._slots[passed % _SLOTS] = 0.0
        self._second = second
        self._earned = sum(self._slots)
