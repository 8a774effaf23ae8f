"""How many messages one call may have."""

from __future__ import annotations

import time
from typing import Final

from microkit.bus.subscription import Batching

SHORTEST_QUIET: Final = 1.0
LONGEST_QUIET: Final = 60.0


class Pace:
    """The size of the next batch. Without a target it is the most there may be.

    With one it begins at a single message and doubles while full calls stay below half the target, as TCP's slow start
    does; it is halved when a call takes longer than the target, or fails. After a failure it does not grow for a while,
    longer each time: a group whose batches keep failing is handled one by one.
    """

    def __init__(self, batching: Batching) -> None:
        self._most = batching.most
        self._target = batching.target
        self.limit = batching.most if batching.target is None else 1
        self._quiet = 0.0
        self._quiet_until = 0.0

    def worked(self, number: int, seconds: float) -> None:
        """A call with so many messages took so long."""
        if self._target is None:
            return
        if seconds > self._target:
            self.limit = max(1, self.limit // 2)
        elif self.limit < self._most and self._may_grow(number, seconds, self._target):
            self.limit = min(self._most, self.limit * 2)
            if self.limit == self._most:
                self._quiet = 0.0

    def failed(self) -> None:
        """A call with several messages failed."""
        if self._target is None:
            return
        self.limit = max(1, self.limit // 2)
        self._quiet = min(LONGEST_QUIET, max(SHORTEST_QUIET, self._quiet * 2))
        self._quiet_until = time.monotonic() + self._quiet

    def _may_grow(self, number: int, seconds: float, target: float) -> bool:
        return number >= self.limit and seconds < target / 2 and time.monotonic() >= self._quiet_until
