"""A partition while it belongs to one member of a group."""

from __future__ import annotations

from dataclasses import dataclass, field

from microkit.bus.port import Delivery


@dataclass(slots=True, eq=False)
class Tenure:
    """What a member knows of a partition it holds. Another one begins when the partition is taken anew, so deliveries
    of an earlier tenure acknowledge nothing.

    ``read`` is the number of the last message seen, ``delivered`` that of the group when the tenure began. While
    ``behind``, messages are pending that were delivered, but not seen: to the predecessor, or with a reply that never
    arrived. ``held`` are the numbers of those in flight, ``again`` those given back, ``buffered`` counts those read and
    not yet fetched.
    """

    topic: str
    partition: int
    token: str
    stream: str
    owners: str
    delivered: int
    read: int = 0
    behind: bool = True
    alive: bool = True
    reading: bool = False
    held: set[int] = field(default_factory=set)
    again: list[Delivery] = field(default_factory=list)
    buffered: int = 0
    draining_since: float | None = None

    @property
    def after(self) -> str:
        """Where the next read begins, as XREADGROUP has it."""
        return f"0-{self.read}" if self.behind else ">"

    @property
    def idle(self) -> bool:
        return not (self.held or self.again or self.buffered or self.reading)

    def caught_up(self) -> None:
        self.behind = False
        self.read = max(self.read, self.delivered)

    def missed(self, numbers: list[int]) -> int:
        """How many messages before or between these new ones are gone; below 0: the numbers began anew."""
        if numbers[0] <= self.read:
            return -1
        return numbers[-1] - self.read - len(numbers)
