"""The messages that a group has fetched, sorted by their keys."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from microkit.bus.handling import Failure
from microkit.bus.port import Delivery

WAITING_BEHIND = 16
"""Times as many messages as there may be keys: how many may wait for an earlier one of their own key."""


@dataclass(slots=True, eq=False)
class Lane:
    """The fetched messages of one topic and key, worked off one after the other."""

    name: tuple[str, str]
    queue: deque[Delivery] = field(default_factory=deque)
    begun: int = 0
    """How many of its first are in somebody's hands."""
    alone: int = 0
    """How many of its first are handled one by one, because a batch with them has failed."""
    failures: int = 0
    """Failed attempts at its first, in these hands."""
    outages: int = 0
    """Attempts at its first that failed for no fault of its own."""
    verdict: Failure | None = None
    going: bool = False
    """Its key goes to another member, and only what is begun with is left."""


class Lanes:
    """All lanes of a group. A lane is in somebody's hands, ``parked`` until its next attempt, or waits: in ``ready``,
    or in ``single`` where its next message is to be handled by itself.

    ``most`` is how many may be ready or in hands at once, ``most_bytes`` how much all messages may hold.
    """

    def __init__(self, most: int, most_bytes: int) -> None:
        self.most = most
        self.ready: deque[Lane] = deque()
        self.single: deque[Lane] = deque()
        self.parked: set[Lane] = set()
        self.held = 0
        self._bytes = 0
        self._most_bytes = most_bytes
        self._lanes: dict[tuple[str, str], Lane] = {}

    def room(self, least: int) -> int:
        """How many more messages may be fetched; none until there is room for ``least`` keys, since fetching costs."""
        keys = self.most - (len(self._lanes) - len(self.parked))
        if keys < least or self._bytes >= self._most_bytes:
            return 0
        return min(keys, self.most * WAITING_BEHIND - self.held)

    def accept(self, deliveries: Sequence[Delivery]) -> None:
        lanes, ready = self._lanes, self.ready
        size = 0
        for delivery in deliveries:
            message = delivery.message
            size += len(message.value)
            name = (message.topic, message.key)
            lane = lanes.get(name)
            if lane is None:
                lane = lanes[name] = Lane(name)
                ready.append(lane)
            lane.queue.append(delivery)
        self.held += len(deliveries)
        self._bytes += size

    def waiting(self) -> int:
        """How many messages the ready lanes have."""
        return sum(len(lane.queue) for lane in self.ready)

    def done(self, lane: Lane) -> Delivery:
        """Forgets the first message of a lane, with all that was known of it."""
        delivery = lane.queue.popleft()
        lane.begun -= 1
        if lane.failures or lane.outages or lane.alone:
            lane.failures = lane.outages = 0
            lane.alone = max(0, lane.alone - 1)
        lane.verdict = None
        self.held -= 1
        self._bytes -= len(delivery.message.value)
        return delivery

    def hand_back(self, lane: Lane) -> None:
        """Whoever had the lane is through with it for now."""
        lane.begun = 0
        lane.going = False
        if lane.queue:
            (self.single if lane.alone else self.ready).append(lane)
        else:
            del self._lanes[lane.name]

    def rest(self) -> list[Delivery]:
        """Everything that is not done."""
        return [delivery for lane in self._lanes.values() for delivery in lane.queue]

    def let_go(self, goes: Callable[[Delivery], bool]) -> Sequence[Delivery]:
        """Forgets what is not begun of the keys that go to another member. See :class:`~microkit.bus.port.Revokes`."""
        gone: list[Delivery] = []
        for lane in [lane for lane in self._lanes.values() if lane.queue and goes(lane.queue[0])]:
            lane.going = lane.begun > 0
            kept = [lane.queue.popleft() for _ in range(lane.begun)]
            gone += lane.queue
            lane.queue = deque(kept)
            if not kept:
                self.parked.discard(lane)
                del self._lanes[lane.name]
        for waiting in (self.ready, self.single):
            kept_lanes = [lane for lane in waiting if lane.queue]
            waiting.clear()
            waiting.extend(kept_lanes)
        self.held -= len(gone)
        self._bytes -= sum(len(delivery.message.value) for delivery in gone)
        return gone
