"""Which instance is called: power of two choices among those that can be, in the own zone first.

Choosing costs the same among ten and a thousand: two are drawn and compared. What can be called is worked out anew only
when something changes: the instances themselves, one that is ejected or comes back, a breaker.

Sources: Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing"; Finagle's ``p2c`` and ``PeakEwma``;
Envoy's outlier detection, and its overprovisioning factor for zones.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final

from microkit.client.instance import Instance
from microkit.discovery.port import Endpoint
from microkit.resilience.breaker import Breaker, BreakerState

_OVERPROVISIONING: Final = 1.4
_LEAST_NEAR: Final = 2
_FORGIVEN_AFTER: Final = 10
_NEARLY_ALL: Final = 10
_MOST_EJECTED: Final = 3
"""One in so many."""


@dataclass(frozen=True, slots=True)
class Ejection:
    """``failures`` in a row eject an instance for ``seconds``, the second time twice as long, ``longest`` at most."""

    failures: int = 5
    seconds: float = 30.0
    longest: float = 300.0


class Balancer:
    """The instances of one service.

    An instance that failed five times in a row is ejected for half a minute, and longer each time; never more than a
    third of the instances are, so of one or two none is. There, and where more than a third fail, the instance's
    breaker does it: while that is open the instance is not chosen as long as another can be, however many are open.

    ``zone`` is the caller's own: its instances are preferred while there are two at least, and half of what an even
    spread over the zones would give; once more than 28 % of them cannot be called, a share goes to the other zones.
    """

    def __init__(
        self,
        make_breaker: Callable[[str], Breaker],
        *,
        zone: str = "",
        ejection: Ejection = Ejection(),
        changed: Callable[[str, Instance], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._make_breaker = make_breaker
        self._zone = zone
        self._ejection = ejection
        self._changed = changed
        self._clock = clock
        self._draw = draw
        self._endpoints: Sequence[Endpoint] = ()
        self._known: dict[str, Instance] = {}
        self._all: list[Instance] = []
        self._near: list[Instance] = []
        self._near_share = 0.0
        self._review_at = math.inf

    @property
    def instances(self) -> Collection[Instance]:
        """All that are known, whether they can be called or not."""
        return self._known.values()

    @property
    def ejected(self) -> int:
        """How many are ejected now."""
        now = self._clock()
        return sum(instance.ejected_until > now for instance in self._known.values())

    @property
    def open(self) -> int:
        """How many breakers of instances are not closed."""
        return sum(not instance.breaker.closed for instance in self._known.values())

    @property
    def failing(self) -> bool:
        """Whether nine of ten instances failed when they were last asked."""
        good = sum(not instance.failures for instance in self._known.values())
        return good * _NEARLY_ALL <= len(self._known)

    def update(self, endpoints: Sequence[Endpoint]) -> None:
        """Takes the instances that discovery knows. The same object as the last time costs nothing."""
        if endpoints is self._endpoints:
            return
        now = self._clock()
        first = not self._known
        known: dict[str, Instance] = {}
        for endpoint in endpoints:
            found = self._known.get(endpoint.url)
            if found is None:
                found = Instance(endpoint, self._make_breaker(endpoint.url), now, new=not first)
            found.endpoint = endpoint
            known[endpoint.url] = found
        self._endpoints = endpoints
        self._known = known
        self.review()

    def pick(self, avoid: Collection[Instance] = ()) -> Instance | None:
        """The instance to call; ``None`` where every breaker is open. Not one of ``avoid`` if another can be called;
        else none that took no connection when last asked, and not the last of them, if any other can."""
        now = self._clock()
        if now >= self._review_at:
            self.review()
        pool = self._all
        if self._near_share and (self._near_share >= 1.0 or self._draw() < self._near_share):
            pool = self._near
        if avoid:
            return self._other(pool, avoid, now)
        size = len(pool)
        if size < 2:
            return pool[0] if pool else None
        first = int(self._draw() * size)
        second = int(self._draw() * (size - 1))
        one, two = pool[first], pool[second if second < first else second + 1]
        return one if one.cost(now) <= two.cost(now) else two

    def _other(self, pool: list[Instance], avoid: Collection[Instance], now: float) -> Instance | None:
        """As :meth:`pick`, after a failure: all are looked at, which is rare."""
        for candidates in (pool, self._all):
            others = [instance for instance in candidates if instance not in avoid]
            if others:
                one, two = others[int(self._draw() * len(others))], others[int(self._draw() * len(others))]
                return one if one.cost(now) <= two.cost(now) else two
        *_, last = avoid
        there = [instance for instance in self._all if not instance.away] or self._all
        again = [instance for instance in there if instance is not last] or there
        return min(again, key=lambda instance: instance.cost(now), default=None)

    def last_resort(self, tried: Collection[Instance]) -> Instance | None:
        """One that is none of ``tried``, were it one that was away when last asked; ``None`` where there is none."""
        now = self._clock()
        left = [one for one in self._known.values() if one not in tried and (one.away or one.breaker.closed)]
        return min(left, key=lambda instance: instance.cost(now), default=None)

    def others(self, tried: Collection[Instance]) -> bool:
        """Whether an instance can be called that is none of ``tried``."""
        return any(instance not in tried for instance in self._all)

    def waits_until(self) -> float:
        """When the next breaker lets a probe through, by the clock; where none can be called."""
        return min((instance.breaker.opens_at() for instance in self._known.values()), default=math.inf)

    def succeeded(self, instance: Instance) -> None:
        """It answered. For what it costs see :meth:`Instance.answered`."""
        instance.failures = 0

    def failed(self, instance: Instance) -> None:
        """It failed once more. Ejects it where that is due and allowed."""
        instance.failures += 1
        if instance.failures < self._ejection.failures or not self._ejection.failures:
            return
        now = self._clock()
        if instance.ejected_until > now or self._known.get(instance.url) is not instance:
            return
        if (self.ejected + 1) * _MOST_EJECTED > len(self._known):
            return
        if now - instance.returned_at > _FORGIVEN_AFTER * self._ejection.seconds:
            instance.ejections = 0
        instance.ejections += 1
        instance.ejected_until = now + min(self._ejection.longest, self._ejection.seconds * instance.ejections)
        self.review()
        if self._changed is not None:
            self._changed("ejected", instance)

    def review(self) -> None:
        """Works out which instances can be called. To be asked for when a breaker's state changes."""
        now = self._clock()
        self._release_surplus(now)
        review_at = math.inf
        usable: list[Instance] = []
        for instance in self._known.values():
            breaker = instance.breaker
            until = instance.ejected_until
            if not breaker.closed:
                until = max(until, breaker.opens_at())
            if until > now:
                instance.usable = False
                review_at = min(review_at, until)
                continue
            if not instance.usable:
                instance.usable = True
                instance.start_anew(now)
                if self._changed is not None and breaker.state is BreakerState.CLOSED:
                    self._changed("returned", instance)
            usable.append(instance)
        weighted = [instance for instance in usable if instance.endpoint.weight > 0]
        self._all = weighted or usable
        self._review_at = review_at
        self._near = [instance for instance in self._all if instance.endpoint.zone == self._zone] if self._zone else []
        self._near_share = self._share_of_zone()

    def _release_surplus(self, now: float) -> None:
        """Takes back the oldest ejections where others have gone: a third of fewer is less."""
        ejected = sorted(
            (instance for instance in self._known.values() if instance.ejected_until > now),
            key=lambda instance: instance.ejected_until,
        )
        for instance in ejected[: max(0, len(ejected) - len(self._known) // _MOST_EJECTED)]:
            instance.ejected_until = 0.0

    def _share_of_zone(self) -> float:
        """The share of calls that stay in the own zone."""
        near = len(self._near)
        zones = len({instance.endpoint.zone for instance in self._known.values()})
        if near < _LEAST_NEAR or near * 2 * zones < len(self._all):
            return 0.0
        there = sum(instance.endpoint.zone == self._zone for instance in self._known.values())
        return min(1.0, _OVERPROVISIONING * near / there)
