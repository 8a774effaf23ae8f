"""What a group does with its messages, and how it gets on."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from microkit.bus.port import Delivery
from microkit.errors import DefinitionError


@dataclass(frozen=True, slots=True)
class Subscription:
    """What one group does with the messages of its topics.

    ``handle`` returns when a delivery is done. It raises :class:`~microkit.errors.UndecodableMessage` for one that no
    retry will help, which is dead-lettered at once, and anything else for one to be tried again: after ``attempts`` it
    is dead-lettered too. Between the attempts lie random times up to ``backoff`` seconds, doubled each time up to
    ``longest_backoff``. One attempt may last ``timeout`` seconds. ``concurrency`` is how many keys are worked on at
    once. A message larger than ``max_bytes`` is dead-lettered unread.
    """

    group: str
    topics: tuple[str, ...]
    handle: Callable[[Delivery], Awaitable[None]]
    concurrency: int = 8
    attempts: int = 10
    backoff: float = 0.1
    longest_backoff: float = 30.0
    timeout: float = 30.0
    max_bytes: int = 1024 * 1024

    def __post_init__(self) -> None:
        if not self.topics:
            raise DefinitionError(f"the group {self.group!r} subscribes to no topic")
        if min(self.concurrency, self.attempts) < 1 or self.timeout <= 0:
            raise DefinitionError(f"the group {self.group!r} needs concurrency, attempts ≥ 1 and a timeout > 0")

    def delay(self, attempt: int) -> float:
        """Seconds to wait after the failed ``attempt`` (from 1): full jitter, as in AWS's "Exponential Backoff And
        Jitter"."""
        ceiling = min(self.longest_backoff, self.backoff * 2 ** min(attempt - 1, 30))
        return random.uniform(0, ceiling)  # noqa: S311  spreads load, hides nothing


@dataclass(frozen=True, slots=True)
class GroupProgress:
    """How one group gets on, for health.

    ``in_flight`` messages were fetched and are not done; ``retrying`` keys wait for their next attempt; ``quiet_for``
    is the seconds since the loop last turned; ``trouble`` is what the bus last failed with, if it has not recovered.
    ``stalled`` means that nothing moves though it should: the liveness that a running process alone does not prove.
    """

    group: str
    in_flight: int
    retrying: int
    quiet_for: float
    stalled: bool
    trouble: str | None
