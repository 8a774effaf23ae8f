"""One instance of a service as its callers see it: how fast it answers, how many calls it has, how it failed."""

from __future__ import annotations

import math
from typing import Final
from urllib.parse import urlsplit

from microkit.discovery.port import Endpoint
from microkit.resilience.breaker import Breaker

DECAY: Final = 10.0
"""Seconds after which a measured time has lost two thirds of its weight."""

SLOW_START: Final = 30.0
"""Seconds in which a new instance's share grows to the full one."""

_LEAST_SHARE: Final = 0.1
_UNKNOWN: Final = 1e9
"""The cost of an instance with calls under way that has answered none yet."""

_FAILED: Final = 10.0
_LONGEST_PENALTY: Final = 1.0


class Instance:
    """``cost`` is that of Finagle's and Linkerd's peak EWMA: a moving average of the time that answers take, which
    jumps up to each peak and comes down slowly, times the calls under way.

    Finagle reads all answers alike, and so prefers an instance that fails at once. Here a failure counts as ten times
    the instance's own time, at most a second.
    """

    __slots__ = (
        "_average",
        "_since",
        "_stamp",
        "away",
        "breaker",
        "ejected_until",
        "ejections",
        "endpoint",
        "failures",
        "host",
        "pending",
        "port",
        "returned_at",
        "slow",
        "url",
        "usable",
    )

    def __init__(self, endpoint: Endpoint, breaker: Breaker, now: float, *, new: bool) -> None:
        self.endpoint = endpoint
        self.url = endpoint.url
        address = urlsplit(endpoint.url)
        self.host = address.hostname or ""
        self.port = address.port
        self.breaker = breaker
        self.pending = 0
        """Calls under way."""
        self.failures = 0
        """In a row."""
        self.away = False
        """Whether it took no connection when it was last asked: then nobody may be there, and nobody is harmed."""
        self.ejected_until = 0.0
        self.ejections = 0
        self.returned_at = -math.inf
        self.usable = True
        self.slow = new
        self._since = now
        self._average = 0.0
        self._stamp = now

    def __repr__(self) -> str:
        return f"<Instance {self.url}>"

    def cost(self, now: float) -> float:
        """What calling it is expected to cost, beside others."""
        average = self._average
        if average:
            if now > self._stamp:
                # Forgets while it is not asked, so that one that was slow once is tried again.
                average *= math.exp((self._stamp - now) / DECAY)
            cost = average * (self.pending + 1)
        elif self.pending:
            cost = _UNKNOWN + self.pending
        else:
            return 0.0
        weight = self.endpoint.weight
        if weight != 1:
            cost = cost / weight if weight > 0 else math.inf
        return cost / self._share(now) if self.slow else cost

    def answered(self, seconds: float, now: float) -> None:
        """It took ``seconds``."""
        average = self._average
        if seconds > average:
            self._average = seconds
        else:
            kept = math.exp((self._stamp - now) / DECAY)
            self._average = average * kept + seconds * (1.0 - kept)
        self._stamp = now

    def failed(self, seconds: float, now: float) -> None:
        """It failed after ``seconds``."""
        self.answered(max(seconds, min(_LONGEST_PENALTY, _FAILED * max(self._average, seconds))), now)

    def kept_waiting(self, seconds: float, now: float) -> None:
        """Who asked left after ``seconds`` without an answer: it would have taken longer."""
        if seconds > self._average > 0.0:
            self.answered(seconds, now)

    def start_anew(self, now: float) -> None:
        """Back after a time without calls: its times are forgotten, and its share grows slowly."""
        self._average = 0.0
        self._stamp = self._since = self.returned_at = now
        self.slow = True
        self.failures = 0

    def _share(self, now: float) -> float:
        share = (now - self._since) / SLOW_START
        if share >= 1.0:
            self.slow = False
            return 1.0
        return max(_LEAST_SHARE, share)
