"""How long to wait for a broker, or for whatever else is away."""

from __future__ import annotations

import random
from typing import Final

LONGEST_PAUSE: Final = 5.0


def pause(failures: int) -> float:
    """Seconds after so many failures in a row: doubled each time, with jitter."""
    return random.uniform(0.05, min(LONGEST_PAUSE, 0.1 * 2 ** min(failures, 10)))  # noqa: S311  spreads load
