"""The bus port: what an adapter promises to the outbox relay on one side, to the consumer runtime on the other.

Batches are native on both sides, because one message a round trip is what makes a bus slow. All methods belong to one
event loop; none is safe to call from another thread.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol, runtime_checkable

from microkit.errors import MicrokitError
from microkit.message import Message


@dataclass(frozen=True, slots=True)
class Promises:
    """What an adapter promises, for the conformance suite and for the reader.

    ``persistent``: a confirmed message survives the end of the broker. ``ordered``: messages of one key are delivered
    in the order they were confirmed in. ``groups``: several consumers of one group share its messages, each group sees
    all. ``redelivers``: a message not acknowledged is delivered again. ``history``: a new group starts with the
    messages that are already there.
    """

    persistent: bool
    ordered: bool
    groups: bool
    redelivers: bool
    history: bool


@dataclass(frozen=True, slots=True)
class Delivery:
    """One message as delivered to one group. ``attempt`` counts from 1; ``position`` belongs to the adapter."""

    message: Message
    group: str
    partition: int
    offset: int
    attempt: int = 1
    position: Any = field(default=None, repr=False, compare=False)


class PublishFailed(MicrokitError):
    """Some messages of a batch were not confirmed.

    ``failed`` maps their indexes in the batch to what went wrong; all others are confirmed. An unconfirmed message may
    have arrived nevertheless: publishing it again is right, and may duplicate it.
    """

    def __init__(self, failed: dict[int, Exception]) -> None:
        super().__init__(f"{len(failed)} messages were not confirmed; the first: {next(iter(failed.values()))!r}")
        self.failed = failed


class MessagesLost(MicrokitError):
    """The broker no longer has messages that a group had not done: deleted, trimmed, or forgotten in a failover.

    ``lost`` is how many, ``None`` where nobody can know. Raised once by :meth:`Consumer.fetch`, which goes on with
    what is there when it is called again.
    """

    def __init__(self, what: str, lost: int | None) -> None:
        super().__init__(what)
        self.lost = lost


@dataclass(frozen=True, slots=True)
class Lag:
    """``waiting`` messages of a partition are not acknowledged by the group: in flight, or yet to be fetched."""

    group: str
    topic: str
    partition: int
    waiting: int


class Consumer(Protocol):
    """One member of a group. Created by :meth:`Bus.subscribe`."""

    async def fetch(self, most: int, wait: float) -> Sequence[Delivery]:
        """Up to ``most`` deliveries, in order within a key; an empty sequence after ``wait`` seconds without any.

        Cancelling it loses nothing: what was taken and not returned is delivered again.

        Raises:
            ConnectionError: the broker is away, or the consumer was closed. A consumer that was not closed may be asked
                again, and fetches when the broker is back.
            MessagesLost: the broker lost messages that were waiting for this group. Ask again.
        """
        ...

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        """Says that these are done. The adapter commits the contiguous prefix where its broker knows only positions.

        A second acknowledgement does nothing. Cancelled, some may stay unacknowledged, and are delivered again.
        """
        ...

    async def release(self, deliveries: Sequence[Delivery]) -> None:
        """Gives these back unfinished, to be delivered again soon, to any member, in their old order."""
        ...

    async def close(self) -> None:
        """Leaves the group. What was fetched and not acknowledged goes to other members."""
        ...


LetGo = Callable[[Callable[[Delivery], bool]], Sequence[Delivery]]
"""Takes a test for deliveries. Whoever has some that pass it and has not begun with them, forgets and returns them;
what it has begun with it finishes and acknowledges, or releases if that fails."""


@runtime_checkable
class Revokes(Protocol):
    """The ability of a consumer whose broker moves keys from member to member, to say so before it does.

    It waits a bounded time until nothing of these keys is in the hands of the caller; then what has not been
    acknowledged is delivered to another member too.
    """

    def on_revoke(self, let_go: LetGo) -> None:
        """``let_go`` is called each time that keys are about to go."""
        ...


class Bus(Protocol):
    """A connection to one broker."""

    promises: Promises

    async def start(self) -> None:
        """Connects.

        Raises:
            ConnectionError: the broker cannot be reached.
        """
        ...

    async def publish(self, messages: Sequence[Message]) -> None:
        """Publishes a batch in its order; returns when all are confirmed.

        A message that fails takes the later ones of its topic and key with it, so that order survives publishing it
        again. Cancelled, any part of the batch may have been published.

        Raises:
            PublishFailed: some were not confirmed; its ``failed`` says which. An ``OSError`` or ``TimeoutError`` in it
                says that the way to the broker failed, anything else that the broker will not have the message.
            ConnectionError: the broker is away; nothing is known to have arrived.
        """
        ...

    def declare(self, group: str, topics: Sequence[str]) -> None:
        """Makes the group known, so that from now on messages wait for it. Done for all groups before anything is
        published; needs no connection. A second time it does nothing."""
        ...

    async def subscribe(self, group: str, topics: Sequence[str]) -> Consumer:
        """Joins a group as a new member."""
        ...

    async def ping(self) -> None:
        """Asks whether the broker answers.

        Raises:
            ConnectionError: it does not.
        """
        ...

    async def close(self) -> None:
        """Ends the connection and closes the consumers that are left."""
        ...


@runtime_checkable
class Settles(Protocol):
    """The rare ability of a bus that keeps nothing itself: it tells when every group has acknowledged a message.

    Until then the outbox row is the only durable copy, so the relay keeps it and publishes it again after a restart.
    """

    def on_settled(self, source: str, settled: Callable[[Sequence[str]], None]) -> Callable[[], None]:
        """``settled`` is called with the ids of messages whose ``ce_source`` is ``source``, soon after each has been
        acknowledged by all groups, or published where no group listens. Calling what is returned ends that."""
        ...


@runtime_checkable
class ShowsLag(Protocol):
    """The ability of a bus to say how far a group is behind."""

    async def lag(self, group: str, topics: Sequence[str]) -> Sequence[Lag]:
        """One entry a partition; for a group that never joined, all that it would begin with.

        Raises:
            ConnectionError: the broker is away.
        """
        ...


@dataclass(frozen=True, slots=True)
class Topic:
    """What the broker has of a topic: ``messages`` are those it keeps, done ones too; ``groups`` those that read it."""

    name: str
    partitions: int
    messages: int
    groups: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Stored:
    """A message where it lies. ``time`` is when the broker took it, ``None`` where it does not say."""

    message: Message
    partition: int
    offset: int
    time: datetime | None = None


@runtime_checkable
class Inspects(Protocol):
    """The ability of a bus to be looked into, for commands and consoles. It joins no group and moves nothing."""

    async def topics(self) -> Sequence[Topic]:
        """All topics, by name.

        Raises:
            ConnectionError: the broker is away.
        """
        ...

    def read(self, topic: str, *, last: int | None = None, follow: bool = False) -> AsyncGenerator[Stored, None]:
        """The messages of a topic that the broker has when it is asked, those that were removed left out, in order
        within a partition. With ``last``, as many of the newest, and these by time where the broker knows it.
        With ``follow`` it goes on with what comes. Close it (``contextlib.aclosing``) when it is left early.

        Of a topic that is not there it gives nothing, and does not make it.

        Raises:
            ConnectionError: the broker is away.
        """
        ...


@runtime_checkable
class Removes(Protocol):
    """The ability to take single messages out of a topic that no group reads: dead letters that were redriven."""

    async def remove(self, stored: Sequence[Stored]) -> None:
        """Removes these; :meth:`Inspects.read` gives them no more. What is not there is left alone.

        Raises:
            ConnectionError: the broker is away; some may be removed.
        """
        ...
