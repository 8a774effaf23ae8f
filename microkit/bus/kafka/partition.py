"""What one member knows of one partition while it has it."""

from __future__ import annotations

from collections import deque


class Partition:
    """Which messages were handed out and are not done, and up to where all are done.

    Kafka keeps one number for a group and a partition: everything before it is done. So what may be committed is the
    end of the contiguous prefix of what was handed out. ``position`` is that number; ``None`` until there is one.

    ``first`` is where the group stood when the partition came, and ``attempts_before`` how often the message there was
    handed out before, to members that did not live to say what came of it.
    """

    __slots__ = (
        "_attempts_before",
        "_done",
        "_first",
        "_order",
        "committed",
        "leaving",
        "live",
        "number",
        "out",
        "position",
        "topic",
    )

    def __init__(self, topic: str, number: int, first: int | None = None, attempts_before: int = 0) -> None:
        self.topic = topic
        self.number = number
        self.live = True
        """Whether this member has it: else nothing that is said of its messages counts."""
        self.leaving = False
        """Whether it is about to go: nothing more of it is handed out."""
        self.position = first
        self.committed = first
        self.out: dict[int, int] = {}
        """Offset → attempt, of what is in the hands of the caller."""
        self._first = first
        self._attempts_before = attempts_before
        self._order: deque[int] = deque()
        self._done: set[int] = set()

    @property
    def dirty(self) -> bool:
        """Whether there is something to commit."""
        return self.position is not None and self.position != self.committed

    def hand_out(self, offset: int) -> int:
        """Notes that a message is given to the caller for the first time; which attempt that is."""
        attempt = 1 + (self._attempts_before if offset == self._first else 0)
        self._order.append(offset)
        self.out[offset] = attempt
        return attempt

    def hand_out_again(self, offset: int, attempt: int) -> None:
        self.out[offset] = attempt

    def done(self, offset: int) -> None:
        """Notes that a message is done; what is not in the caller's hands is left alone."""
        if self.out.pop(offset, None) is None:
            return
        order, done = self._order, self._done
        done.add(offset)
        while order and order[0] in done:
            self.position = order.popleft() + 1
            done.remove(self.position - 1)

    def note(self, *, leaving: bool) -> int:
        """How often the message at ``position`` was handed out without an end, should this member be killed now, or,
        ``leaving``, end in order."""
        if self.position == self._first:
            return self._attempts_before + (0 if leaving else 1)
        return 0 if leaving else 1

    def take_back(self, offset: int) -> int | None:
        """Notes that a message is given back; its attempt, or ``None`` when it was not in the caller's hands."""
        return self.out.pop(offset, None)
