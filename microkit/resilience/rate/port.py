"""What a rate limiter is."""

from __future__ import annotations

from typing import Protocol

from microkit.resilience.rate.limit import Limit, Verdict


class RateLimiter(Protocol):
    """Token buckets by key.

    A key is free text that names the policy and whose bucket it is. Any number of tasks, and of processes where the
    adapter's store is shared, may ask at once: asking and taking are one step. A call that is cancelled may have taken
    its tokens.
    """

    async def take(self, key: str, limit: Limit, cost: int = 1) -> Verdict:
        """Takes ``cost`` tokens out of the key's bucket, all or none; 0 only looks.

        Raises:
            ConnectionError: the store is away or does not answer in time. Nothing, or all, was taken.
            ValueError: the bucket never holds as many.
        """
        ...

    async def close(self) -> None:
        """Gives back what it holds. Who waits for a verdict gets a ``ConnectionError``."""
        ...


def check_cost(limit: Limit, cost: int) -> None:
    """Refuses a cost that no wait will meet.

    Raises:
        ValueError: it is more than the bucket holds, or negative.
    """
    if not 0 <= cost <= limit.burst:
        raise ValueError(f"{cost} tokens out of a bucket of {limit.burst}")
