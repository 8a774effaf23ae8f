"""How many messages one call may have."""

from __future__ import annotations

import time
from typing import Final

from microkit.bus.subscription import Batching

SHORTEST_QUIET: Final = 1.0
LONGEST_QUIET: Final = 60.0


FIRST: Final = 8


class Pace:
    """The size of the next batch. Without a target it is the most there may be.

    With one it begins small, and doubles while the handlers of full calls together stay below half the target, as TCP's
    slow start does; it is halved when they take longer than the target, or fail. After that it does not grow for a
    while, longer each time: what keeps failing, or takes its time, is handled one by one.
    """

    def __init__(self, batching: Batching) -> None:
        self._most = batching.most
        self._target = batching.target
        self.limit = batching.most if batching.target is None else min(FIRST, batching.most)
        self._quiet = 0.0
        self._quiet_until = 0.0

    def worked(self, number: int, busy: float) -> None:
        """A call with so many messages worked; ``busy`` are the seconds that it spent in handlers."""
        if self._target is None:
            return
        if busy > self._target:
            self.failed()
        elif self.limit < self._most and number >= self.limit and busy < self._target / 2:
            if time.monotonic() < self._quiet_until:
                return
            self.limit = min(self._most, self.limit * 2)
            if self.limit == self._most:
                self._quiet = 0.0

    def failed(self) -> None:
        """A call with several messages failed, or took too long."""
        if self._target is None:
            return
        self.limit = max(1, self.limit // 2)
        self._quiet = min(LONGEST_QUIET, max(SHORTEST_QUIET, self._quiet * 2))
        self._quiet_until = time.monotonic() + self._quiet
