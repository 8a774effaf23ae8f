"""Load shedding: a limit on what is worked on at once, which adapts, and a queue before it that is bounded by time.

Two ideas together. The limit falls while the event loop has no pause and rises while it has (additive increase,
multiplicative decrease, as TCP does; Netflix' concurrency-limits has it as AIMDLimit), but only under overload: to
do fewer things at once is of no use to those who wait for their turn in a burst. How long they may, and what overload
is, says :mod:`microkit.resilience.patience`.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from microkit.resilience.patience import Patience, tolerated

Reason = Literal["queue", "concurrency"]

TICK: Final = 0.02
"""Seconds between two looks at the event loop, while there are requests."""
TICKS: Final = 5
"""Looks after which it is decided whether the loop is overloaded."""
INTERVAL: Final = TICK * TICKS
LATE: Final = 0.005
"""A look that comes later than this each time, in seconds, tells of a standing queue (CoDel's target)."""
BUSY: Final = 0.9
"""Share of its time for which the loop's thread computes when it is overloaded."""
DECREASE: Final = 0.8
LONGEST_QUEUE: Final = 10_000
"""Requests that wait, whatever time they have."""
_WEIGHT: Final = 0.05


class Overloaded(Exception):
    """Refused before any work. ``reason``: it waited for too long already (``queue``), or no place became free in time
    (``concurrency``)."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason: Reason = reason


class LoopLoad:
    """How the event loop of this thread gets on: whether it computes without a pause, and whether it is late each time.

    The thread's own CPU time sees a loop that never sleeps, lateness one that gets no CPU, or has a standing queue. It
    looks only while it is kept awake.
    """

    def __init__(self, decided: Callable[[bool, bool, float], bool]) -> None:
        self._decided = decided
        self._timer: asyncio.TimerHandle | None = None
        self._due = self._since = self._computed = 0.0
        self._looks = self._late = 0

    @property
    def looking(self) -> bool:
        return self._timer is not None

    def look(self) -> None:
        """Begins; ``decided(busy, late, seconds)`` is called every 100 ms, or after the ``seconds`` that the loop took
        to come to it, until it returns false."""
        self._begin(time.monotonic())
        self._again(self._since)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _begin(self, now: float) -> None:
        self._since, self._computed = now, time.thread_time()
        self._looks = self._late = 0

    def _again(self, now: float) -> None:
        self._due = now + TICK
        self._timer = asyncio.get_running_loop().call_later(TICK, self._tick)

    def _tick(self) -> None:
        now = time.monotonic()
        self._looks += 1
        self._late += now - self._due > LATE
        seconds = now - self._since
        # A loop whose turns take a second is not to be looked at for five of them.
        if self._looks >= TICKS or seconds > 2 * INTERVAL:
            busy = time.thread_time() - self._computed > BUSY * seconds
            if not self._decided(busy, self._late == self._looks, seconds):
                self._timer = None
                return
            self._begin(now)
        self._again(now)


@dataclass(eq=False, slots=True)
class _Waiter:
    since: float
    place: asyncio.Future[bool]


class Gate:
    """Lets requests in, or refuses them before they cost anything.

    ``most`` is the highest limit; ``patience`` how many seconds a request may wait while nothing is overloaded. Those
    that are ``critical`` go before the others and keep that patience under load, too. A gate belongs to one event loop.
    """

    def __init__(self, *, most: int = 1000, patience: float = 1.0) -> None:
        self.in_flight = 0
        self.limit = float(most)
        self._most = most
        self._patience = Patience(patience)
        self._service = 0.0  # seconds in which a request is done, on average
        self._peak = 0
        self._came = 0
        self._refused = 0
        self._pressed = False
        self._least = math.inf  # seconds that those who were let in had waited, of all the least
        self._done = 0
        self._critical: deque[_Waiter] = deque()
        self._normal: deque[_Waiter] = deque()
        self._expiry: asyncio.TimerHandle | None = None
        self._load = LoopLoad(self._decide)
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def overloaded(self) -> bool:
        return self._patience.overloaded

    @property
    def waiting(self) -> int:
        return len(self._critical) + len(self._normal)

    def enter_now(self, waited: float) -> bool:
        """Takes a place if there is one and nobody is before; ``waited`` is for how many seconds the request has been
        there already. To be followed by :meth:`leave`."""
        in_flight = self.in_flight
        if waited > self._patience.seconds or in_flight >= self.limit or self._normal or self._critical:
            return False
        self.in_flight = in_flight = in_flight + 1
        self._peak = max(self._peak, in_flight)
        self._least = min(self._least, waited)
        self._came += 1
        if not self._load.looking:
            self._load.look()
        return True

    async def enter(self, waited: float, *, critical: bool = False) -> None:
        """Takes a place, where :meth:`enter_now` gave none; waits for one where that makes sense.

        Raises:
            Overloaded: it makes none, or none became free in time.
        """
        self._came += 1
        if not self._load.looking:
            self._load.look()
        if waited > (self._patience.most if critical else self._patience.seconds):
            raise self._refusal("queue")
        queue = self._critical if critical else self._normal
        if self.in_flight < self.limit and not self._critical and not (queue is self._normal and queue):
            self._take(waited)
            return
        self._pressed = True
        if len(queue) >= LONGEST_QUEUE:
            raise self._refusal("concurrency")
        if self._loop is None:
            self._loop = asyncio.get_running_loop()  # once: it asks the kernel for the process each time
        waiter = _Waiter(time.monotonic() - waited, self._loop.create_future())
        queue.append(waiter)
        self._expect()
        try:
            admitted = await waiter.place
        except asyncio.CancelledError:
            if waiter.place.done() and not waiter.place.cancelled() and waiter.place.result():
                self._free()
            raise
        if not admitted:
            raise self._refusal("concurrency")

    def leave(self, seconds: float) -> None:
        """Gives the place back of a request that was worked on for ``seconds``."""
        self._service += _WEIGHT * (seconds - self._service)
        self._done += 1
        self._free()

    def close(self) -> None:
        """Ends the timers; who waits is refused."""
        self._load.stop()
        self._patience.most = self._patience.seconds = -1.0
        self._expire()

    def _refusal(self, reason: Reason) -> Overloaded:
        self._refused += 1
        self._patience.lost(tolerated(self._service))
        return Overloaded(reason)

    def _take(self, waited: float) -> None:
        self.in_flight += 1
        self._peak = max(self._peak, self.in_flight)
        self._least = min(self._least, waited)

    def _free(self) -> None:
        self.in_flight -= 1
        if self._normal or self._critical:
            self._next()

    def _next(self) -> None:
        """Hands free places on; who waited for too long by now is refused."""
        if self.in_flight >= self.limit:
            return
        now = time.monotonic()
        for queue, tolerance in ((self._critical, self._patience.most), (self._normal, self._patience.seconds)):
            while queue and self.in_flight < self.limit:
                waiter = queue.popleft()
                if waiter.place.done():
                    continue
                waited = now - waiter.since
                in_time = waited <= tolerance
                if in_time:
                    self._take(waited)
                waiter.place.set_result(in_time)

    def _expect(self) -> None:
        """Has a timer for the one who has waited for longest."""
        if self._expiry is None:
            first = min(queue[0].since for queue in (self._critical, self._normal) if queue)
            wait = max(0.0, first + self._patience.most - time.monotonic())
            self._expiry = asyncio.get_running_loop().call_later(wait + 0.001, self._expire)

    def _expire(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
        self._expiry = None
        now = time.monotonic()
        for queue in (self._critical, self._normal):
            while queue and (queue[0].place.done() or now - queue[0].since > self._patience.most):
                waiter = queue.popleft()
                if not waiter.place.done():
                    waiter.place.set_result(False)
        if self._normal or self._critical:
            self._expect()

    def _decide(self, busy: bool, late: bool, seconds: float = INTERVAL) -> bool:
        """Every 100 ms, or ``seconds``: what the limit and the tolerated wait are from now on."""
        came, refused, done = self._came, self._refused, self._done
        peak, pressed = self._peak, self._pressed
        standing = late or LATE < self._least < math.inf
        self._came = self._refused = self._done = 0
        self._peak, self._pressed, self._least = self.in_flight, False, math.inf
        if not came and not self.waiting:
            # Nothing came: what was learnt under load says nothing about what comes next.
            self._patience.calm()
            self.limit = float(self._most)
            return self.in_flight > 0
        self._patience.review(came, refused, tolerated(self._service), standing=standing)
        if self.overloaded and (busy or late):
            # Never fewer than are done while a look may be late (Little's law). Work that waits for others, as a
            # gateway's, needs some at once to use the CPU; so short a queue may as well be within as before the gate.
            least = min(float(self._most), done * LATE / seconds)
            self.limit = max(1.0, least, min(self.limit, peak) * DECREASE)
        elif pressed or peak >= self.limit:
            step = math.sqrt(self.limit) if self.overloaded else self.limit
            self.limit = min(float(self._most), self.limit + step)
        self._next()
        return True
