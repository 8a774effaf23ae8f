"""Times as people write them on a command line."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

from microkit.errors import ConfigurationError
from microkit.settings.quantities import seconds

_DURATION: Final = re.compile(r"([0-9.]+\s*(us|ms|s|m|h|d))+")


def read_since(text: str) -> datetime:
    """``15m`` ago, or an instant of ISO 8601; one without a zone is in UTC, as everything that is printed is.

    Raises:
        ConfigurationError: it is neither.
    """
    try:
        if _DURATION.fullmatch(text.strip()):
            return datetime.now(UTC) - timedelta(seconds=seconds(text.strip()))
        found = datetime.fromisoformat(text.strip())
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ConfigurationError(
            f"--since {text!r} is no time; an example: --since 15m, or --since 2026-01-31T12:00:00+00:00"
        ) from None
