"""What a group does with its messages, and how it gets on."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum

from microkit.bus.port import Delivery
from microkit.errors import DeadLetter, DefinitionError

Errors = tuple[type[Exception], ...]

Within = Callable[[Delivery], AbstractContextManager[None]]
"""Makes the span and the :class:`~microkit.context.WorkContext` of one message of a batch current inside a block."""


class Fate(StrEnum):
    """What becomes of a message whose attempt has failed."""

    RETRY = "retry"
    """It is tried again, later and later, and dead-lettered when its attempts are used up."""
    DEAD_LETTER = "dead-letter"
    """It is dead-lettered at once."""
    IGNORE = "ignore"
    """It is done with."""
    OUTAGE = "outage"
    """Something else is away, and it is not the message's fault: tried again for as long as it takes."""


@dataclass(frozen=True, slots=True)
class Batching:
    """Several messages in one call.

    ``handle`` is given at most ``most`` messages, in their order within each key, and returns those that it left undone
    for reasons of their own: they, and all of them when it raises, are handled one by one. Where it leaves one, it must
    leave the later ones of the same topic and key.

    A batch is what is there; one that is not full waits ``wait`` seconds for more. ``each``: it calls :data:`Within`
    for each message, else the batch has one span. With a ``target`` the number of messages follows the seconds that are
    spent in these: it grows while calls are faster, and is halved when one is slower or fails, so that handlers that
    take their time are given one message at a time and run side by side.
    """

    handle: Callable[[Sequence[Delivery], Within], Awaitable[Sequence[Delivery]]]
    most: int = 100
    wait: float = 0.0
    each: bool = False
    target: float | None = None


@dataclass(frozen=True, slots=True)
class Subscription:
    """What one group does with the messages of its topics.

    ``handle`` returns when a delivery is done; whatever it raises is a failed attempt. What then happens is decided by
    the error's nearest class among ``dead_letter``, ``ignore`` and ``outages`` (see :class:`Fate`);
    :class:`~microkit.errors.DeadLetter` is of the first kind, and all others are tried again. After ``attempts`` a
    message is dead-lettered. Between the attempts lie random times up to ``backoff`` seconds, doubled each time up to
    ``longest_backoff``. One attempt may last ``timeout`` seconds. ``concurrency`` is how many keys, or batches, are
    worked on at once. A message larger than ``max_bytes`` is dead-lettered unread.

    ``deadline``: an attempt lasts no longer than the work had that published the message, where that says so, and a
    message whose time is over is given up: dead-lettered, or done with where ``ignore`` covers
    :class:`~microkit.errors.DeadlineExceeded`. Each message has its own time, so such a group has no batches.
    """

    group: str
    topics: tuple[str, ...]
    handle: Callable[[Delivery], Awaitable[None]]
    batching: Batching | None = None
    concurrency: int = 8
    attempts: int = 10
    backoff: float = 0.1
    longest_backoff: float = 30.0
    timeout: float = 30.0
    max_bytes: int = 1024 * 1024
    dead_letter: Errors = ()
    ignore: Errors = ()
    outages: Errors = ()
    deadline: bool = False

    def __post_init__(self) -> None:
        if not self.topics:
            raise DefinitionError(f"the group {self.group!r} subscribes to no topic")
        if min(self.concurrency, self.attempts) < 1 or self.timeout <= 0:
            raise DefinitionError(f"the group {self.group!r} needs concurrency, attempts ≥ 1 and a timeout > 0")
        if self.deadline and self.batching is not None:
            raise DefinitionError(f"the group {self.group!r} has batches, and each of its messages a time of its own")
        if self.batching is not None and (self.batching.most < 1 or not 0 <= self.batching.wait < self.timeout):
            raise DefinitionError(f"the group {self.group!r} needs batches of ≥ 1, and a wait ≥ 0 below its timeout")
        self.fates()

    def fates(self) -> dict[type[BaseException], Fate]:
        """What becomes of a message, by the class of the error.

        Raises:
            DefinitionError: a class is named twice.
        """
        found: dict[type[BaseException], Fate] = {}
        named = ((Fate.DEAD_LETTER, self.dead_letter), (Fate.IGNORE, self.ignore), (Fate.OUTAGE, self.outages))
        for fate, kinds in named:
            for kind in kinds:
                if kind in found:
                    raise DefinitionError(
                        f"the group {self.group!r} names {kind.__name__} as {found[kind]} and as {fate}; choose one"
                    )
                found[kind] = fate
        return {DeadLetter: Fate.DEAD_LETTER, **found}

    def delay(self, attempt: int) -> float:
        """Seconds to wait after the failed ``attempt`` (from 1): full jitter, as in AWS's "Exponential Backoff And
        Jitter"."""
        ceiling = min(self.longest_backoff, self.backoff * 2 ** min(attempt - 1, 30))
        return random.uniform(0, ceiling)  # noqa: S311  spreads load, hides nothing


@dataclass(frozen=True, slots=True)
class GroupProgress:
    """How one group gets on, for health.

    ``in_flight`` messages were fetched and are not done; ``retrying`` keys wait for their next attempt; ``quiet_for``
    is the seconds since the loop last turned; ``trouble`` is what the bus, or what the handler needs, last failed with,
    if it has not recovered. ``stalled`` means that nothing moves though it should: the liveness that a running process
    alone does not prove. ``restarts`` counts how often a loop of the group crashed and was begun anew.
    """

    group: str
    in_flight: int
    retrying: int
    quiet_for: float
    stalled: bool
    trouble: str | None
    restarts: int = 0
