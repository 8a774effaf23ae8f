"""How a relay works, and how it is."""

from __future__ import annotations

import random
from dataclasses import dataclass

from microkit.outbox.queue import Backlog


@dataclass(frozen=True, slots=True)
class RelayOptions:
    """How a relay works.

    ``lease`` seconds after its last sign of life its shards go to another relay. ``poll`` is the most seconds between
    two looks at the table when nobody wakes it. A row that the bus refuses ``attempts`` times is parked; between them
    lie random times up to ``backoff`` seconds, doubled each time up to ``longest_backoff``. Published rows are kept
    ``keep`` seconds, inbox rows ``keep_inbox``. With a bus that settles, at most ``unsettled`` rows (and the rest of a
    batch) are on their way.
    """

    batch: int = 1000
    lease: float = 15.0
    poll: float = 1.0
    attempts: int = 10
    backoff: float = 0.2
    longest_backoff: float = 30.0
    keep: float = 3600.0
    keep_inbox: float = 7 * 24 * 3600.0
    unsettled: int = 2000

    def delay(self, attempts: int) -> float | None:
        """Seconds until the next attempt of a row that was refused so many times, ``None`` when it is parked."""
        if attempts >= self.attempts:
            return None
        ceiling = min(self.longest_backoff, self.backoff * 2 ** min(attempts - 1, 30))
        return random.uniform(0, ceiling)  # noqa: S311  spreads load


@dataclass(frozen=True, slots=True)
class RelayHealth:
    """How the relay is. ``trouble`` says what database or bus last failed with, if they have not recovered; ``stalled``
    that the loop has not turned for longer than a lease."""

    backlog: Backlog
    shards: int
    stalled: bool
    trouble: str | None

    @property
    def ok(self) -> bool:
        return not self.stalled and self.trouble is None
