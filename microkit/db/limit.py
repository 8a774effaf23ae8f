"""How long a statement may take: as long as the setting says, and never longer than the caller waits."""

from __future__ import annotations

from microkit import context


def allowed(limit: float) -> float:
    """Seconds for the next statement: ``limit``, or less where the deadline comes sooner.

    Raises:
        DeadlineExceeded: the deadline has passed.
    """
    left = context.remaining()
    return limit if left is None or left > limit else left
