"""How long to wait before a call is made again."""

from __future__ import annotations

import random
import re
import time
from email.utils import parsedate_to_datetime
from typing import Final

_SECONDS: Final = re.compile(r"[0-9]{1,9}", re.ASCII)


def full_jitter(attempt: int, first: float, longest: float) -> float:
    """Seconds to wait after the failed ``attempt`` (from 1): a random time up to ``first · 2^(attempt-1)``, at most
    ``longest``. From AWS's "Exponential Backoff And Jitter"."""
    return random.uniform(0, min(longest, first * 2.0 ** min(attempt - 1, 60)))  # noqa: S311  spreads load


def retry_after(header: str | None) -> float | None:
    """The seconds that a ``Retry-After`` asks for (RFC 9110, 10.2.3: seconds or a date); ``None`` where it cannot be
    read."""
    if header is None:
        return None
    text = header.strip()
    if _SECONDS.fullmatch(text):
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None
