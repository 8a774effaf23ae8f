"""How often a registry is asked."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Final

SHORTEST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 10.0

BURST: Final = 5
EVERY: Final = 1.0


def pause(failures: int) -> float:
    """Seconds to wait after so many failures in a row: doubled each time up to :data:`LONGEST_PAUSE`, with jitter."""
    most = min(LONGEST_PAUSE, SHORTEST_PAUSE * 2 ** min(failures, 10))
    return random.uniform(most / 2, most)  # noqa: S311  spreads load


class Pace:
    """A token bucket for a loop of blocking queries, as Consul's documentation asks for it.

    ``burst`` changes in a row are told at once; where the registry goes on answering at once, because it is ill or
    because very much changes, the loop becomes one question each ``every`` seconds.
    """

    def __init__(self, burst: int = BURST, every: float = EVERY) -> None:
        self._burst = burst
        self._every = every
        self._tokens = float(burst)
        self._filled = time.monotonic()

    async def turn(self) -> None:
        """Waits until it is time to ask."""
        now = time.monotonic()
        self._tokens = min(self._burst, self._tokens + (now - self._filled) / self._every) - 1
        self._filled = now
        if self._tokens < 0:
            await asyncio.sleep(-self._tokens * self._every)
