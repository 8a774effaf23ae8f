"""A partition while it belongs to one member of a group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from microkit.bus.port import Delivery


@dataclass(slots=True, eq=False)
class Tenure:
    """What a member knows of a partition it holds. Another one begins when the partition is taken anew, so deliveries
    of an earlier tenure acknowledge nothing.

    ``read`` is the number of the last message seen. While ``behind``, messages are pending beyond it that were
    delivered and not seen: with a reply that never arrived, or by a predecessor that read on after it had lost the
    partition. A tenure begins ``inheriting``: what its predecessor left has holes, where things were acknowledged.
    ``held`` are the numbers of the messages in flight, ``again`` those given back, ``buffered`` counts those read and
    not yet fetched. It is ``revoked`` when what was not begun with has been let go of, for the next owner.
    """

    topic: str
    partition: int
    token: str
    stream: str
    owners: str
    read: int = 0
    behind: bool = True
    inheriting: bool = True
    alive: bool = True
    reading: bool = False
    held: set[int] = field(default_factory=set)
    again: list[Delivery] = field(default_factory=list)
    buffered: int = 0
    draining_since: float | None = None
    revoked: bool = False

    @property
    def idle(self) -> bool:
        return not (self.held or self.again or self.buffered or self.reading)

    def inherit(self, numbers: Sequence[int], gone: int, delivered: int | None) -> int:
        """Notes what was pending beyond ``read``, of which ``gone`` have no message any more, and the last number
        delivered to the group if that was all; how many messages are lost."""
        lost = gone
        if not self.inheriting:  # what was delivered after ``read`` is either here or gone
            upto = delivered if delivered is not None else numbers[-1] if numbers else self.read
            lost = max(gone, upto - self.read - len(numbers))
        if numbers:
            self.read = numbers[-1]
        if delivered is not None:
            self.read = max(self.read, delivered)
            self.behind = self.inheriting = False
        return lost
