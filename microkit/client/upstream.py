"""A service as its callers see it: its instances, who of them is called next, and whether a call may be made at all.

What the typed client and the gateway share. For each attempt of a call::

    upstream.begin()                             # once a call: the retry budget grows
    chosen = await upstream.pick()
    outcome = Outcome.LEFT
    try:
        response = await send(chosen.instance.url)
        outcome = outcome_of(response.status, response.headers.get("Retry-After"))
    except (ConnectionError, TimeoutError):
        outcome = Outcome.FAILED
        raise
    finally:
        chosen.done(outcome)

and before another attempt ``upstream.may_retry("503")``, then ``pick(avoid=[chosen.instance])``.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from microkit.client.balancer import Balancer, Ejection
from microkit.client.instance import Instance
from microkit.discovery.port import Resolver
from microkit.resilience.breaker import FAILURES, RESET, Breaker, BreakerOpen, BreakerState
from microkit.resilience.budget import FREE, SHARE, RetryBudget
from microkit.telemetry import Telemetry

_log = logging.getLogger(__name__)

_SHED: Final = 503
_BOTH: Final = 2


class Outcome(Enum):
    """What an attempt says about whom it asked."""

    ANSWERED = "answered"
    """Works, were it with a refusal."""
    FAILED = "failed"
    """A 5xx, no connection, a broken answer, none in a fair time."""
    AWAY = "away"
    """Refused the connection: a failure that cost nobody anything."""
    SHED = "shed"
    """Refused for the moment (503 with Retry-After): full, and neither broken nor idle."""
    LEFT = "left"
    """Says nothing: cancelled, or given less than a fair time."""


def outcome_of(status: int, retry_after: str | None = None) -> Outcome:
    """What an answer of this status says. A server that sheds load is not taken out: what it admits it answers, and
    without it the others would be still fuller."""
    if status < 500:
        return Outcome.ANSWERED
    return Outcome.SHED if status == _SHED and retry_after else Outcome.FAILED


@dataclass(frozen=True, slots=True)
class Guard:
    """How a service is guarded. The service's breaker opens at twice the failures of an instance's, counted only while
    nearly all instances failed when they were last asked: bad ones among good ones are their own breakers' matter."""

    retry_share: float = SHARE
    retry_free: float = FREE
    breaker_failures: int = FAILURES
    breaker_reset: float = RESET
    ejection: Ejection = field(default_factory=Ejection)


class Chosen:
    """One attempt at one instance. :meth:`done` must be called, once, however it ends."""

    __slots__ = ("_began", "_service_ticket", "_ticket", "_upstream", "instance")

    def __init__(self, upstream: Upstream, instance: Instance, service_ticket: int, ticket: int) -> None:
        self._upstream = upstream
        self._service_ticket = service_ticket
        self._ticket = ticket
        self.instance = instance
        instance.pending += 1
        self._began = time.monotonic()

    def done(self, outcome: Outcome) -> None:
        """It has ended; the time it took is measured."""
        instance, upstream = self.instance, self._upstream
        instance.pending -= 1
        now = time.monotonic()
        if outcome is Outcome.ANSWERED:
            instance.answered(now - self._began, now)
            instance.failures = 0
            instance.breaker.succeeded(self._ticket)
            upstream.breaker.succeeded(self._service_ticket)
            instance.away = False
        elif outcome in (Outcome.FAILED, Outcome.AWAY):
            instance.away = outcome is Outcome.AWAY
            instance.failed(now - self._began, now)
            counted = instance.breaker.closed
            instance.breaker.failed(self._ticket)
            upstream.balancer.failed(instance)
            if not upstream.breaker.closed or (counted and upstream.balancer.failing):
                upstream.breaker.failed(self._service_ticket)
            else:
                upstream.breaker.left(self._service_ticket)
        else:
            if outcome is Outcome.SHED:
                instance.failed(now - self._began, now)
            else:
                instance.kept_waiting(now - self._began, now)
            instance.breaker.left(self._ticket)
            upstream.breaker.left(self._service_ticket)
            if not instance.breaker.closed:
                upstream.balancer.review()  # its probe may be made anew


class Upstream:
    """The instances of ``service``, its breaker and its retry budget.

    ``zone`` is the caller's own. One for each service and process: what is learnt in one place holds for all.
    """

    def __init__(
        self,
        service: str,
        *,
        resolver: Resolver,
        telemetry: Telemetry,
        guard: Guard = Guard(),
        zone: str = "",
    ) -> None:
        self.service = service
        self.budget = RetryBudget(guard.retry_share, guard.retry_free)
        self.begin = self.budget.deposit
        """To be called when a call begins, of one attempt or more."""
        self.breaker = Breaker(
            service, failures=_BOTH * guard.breaker_failures, reset=guard.breaker_reset, changed=self._service_changed
        )
        self.balancer = Balancer(self._breaker_of, zone=zone, ejection=guard.ejection, changed=self._moved)
        self._guard = guard
        self._resolve = resolver.resolve
        self._count(telemetry)

    async def pick(self, avoid: Collection[Instance] = (), *, unsent: bool = False) -> Chosen:
        """The instance to call now, not one of ``avoid`` if another can be called.

        ``unsent`` says that the last of ``avoid`` took no connection. Then one is asked whose breaker is open because
        it took none either: in a rolling restart the instance that was away a moment ago is back when the next one
        goes, and its breaker has not noticed.

        Raises:
            Unavailable: no instance is known.
            BreakerOpen: the service, or each of its instances, failed repeatedly; nothing is sent.
        """
        self.balancer.update(await self._resolve(self.service))
        breaker = self.breaker
        try:
            service_ticket = breaker.enter()
        except BreakerOpen:
            self._refused.inc()
            raise
        instance = self.balancer.pick(avoid)
        if unsent and (instance is None or instance in avoid):
            instance = self.balancer.last_resort(avoid) or instance
            if instance is not None and instance.away:
                # Not a probe alone, which all others would have to wait for; another five failures open it again.
                instance.breaker.close()
        if instance is None:
            breaker.left(service_ticket)
            self._refused.inc()
            raise self._none_to_call()
        own = instance.breaker
        try:
            ticket = own.enter()
        except BreakerOpen:
            breaker.left(service_ticket)
            self._refused.inc()
            raise
        if not own.closed:
            self.balancer.review()  # one probe, and the others go elsewhere
        return Chosen(self, instance, service_ticket, ticket)

    def breakers(self) -> Iterable[Breaker]:
        """The service's, and those of its instances."""
        return (self.breaker, *(instance.breaker for instance in self.balancer.instances))

    def may_retry(self, reason: str, *, free: bool = False) -> bool:
        """Whether the budget allows another attempt; if so it is taken from it. ``reason`` is one of few words. A
        ``free`` one is after a refused connection: it asks of the service what nobody was asked before, as gRPC's
        transparent retries do."""
        if free or self.budget.withdraw():
            self._retries(self.service, reason).inc()
            return True
        self._exhausted.inc()
        return False

    @property
    def callable(self) -> bool:
        """Whether a call would be let through, were it as a probe."""
        instances = self.balancer.instances
        return self.breaker.admits() and (not instances or any(one.breaker.admits() for one in instances))

    def state(self) -> dict[str, Any]:
        """What is to be seen of it: for health and for people."""
        budget = self.budget.balance()
        return {
            "breaker": self.breaker.state.name.lower(),
            "instances": len(self.balancer.instances),
            "ejected": self.balancer.ejected,
            "open": [i.url for i in self.balancer.instances if not i.breaker.closed],
            "active": self._active(),
            "retry_budget": round(budget, 1) if math.isfinite(budget) else None,
        }

    def _none_to_call(self) -> BreakerOpen:
        wait = self.balancer.waits_until() - time.monotonic()
        seconds = math.ceil(wait) if math.isfinite(wait) else 1
        return BreakerOpen(
            f"All {len(self.balancer.instances)} instances of {self.service} failed repeatedly",
            headers={"Retry-After": str(max(1, seconds))},
        )

    def _breaker_of(self, url: str) -> Breaker:
        return Breaker(
            f"{self.service} at {url}",
            failures=self._guard.breaker_failures,
            reset=self._guard.breaker_reset,
            changed=self._instance_changed,
        )

    def _service_changed(self, breaker: Breaker, state: BreakerState) -> None:
        self._tell(breaker, state)

    def _instance_changed(self, breaker: Breaker, state: BreakerState) -> None:
        self.balancer.review()
        self._tell(breaker, state)

    def _tell(self, breaker: Breaker, state: BreakerState) -> None:
        level = logging.WARNING if state is BreakerState.OPEN else logging.INFO
        _log.log(level, "the breaker of %s is %s", breaker.name, state.name.lower().replace("_", " "))

    def _moved(self, what: str, instance: Instance) -> None:
        if what == "ejected":
            self._ejections.inc()
            _log.warning("%s at %s is ejected: %d failures in a row", self.service, instance.url, instance.failures)
        else:
            _log.info("%s at %s is called again", self.service, instance.url)

    def _active(self) -> int:
        return sum(instance.pending for instance in self.balancer.instances)

    def _count(self, telemetry: Telemetry) -> None:
        metrics, service = telemetry.metrics, self.service
        label = ("server_address",)
        self._retries = metrics.counter(
            "http_client_retries_total", "Attempts after the first, by what had happened.", (*label, "reason")
        )
        self._exhausted = metrics.counter(
            "http_client_retry_budget_exhausted_total", "Retries that the budget did not allow.", label
        )(service)
        self._refused = metrics.counter(
            "http_client_breaker_refused_total", "Calls that an open breaker refused.", label
        )(service)
        self._ejections = metrics.counter("http_client_ejections_total", "Instances that were ejected.", label)(service)
        gauges: dict[str, tuple[str, Callable[[], float]]] = {
            "http_client_breaker_state": (
                "The service's breaker: 0 closed, 1 half open, 2 open.",
                lambda: int(self.breaker.state),
            ),
            "http_client_instances": ("Instances that are known.", lambda: len(self.balancer.instances)),
            "http_client_ejected_instances": ("Instances that are ejected.", lambda: self.balancer.ejected),
            "http_client_open_instances": ("Instances whose breaker is not closed.", lambda: self.balancer.open),
            "http_client_active_requests": ("Requests under way.", self._active),
        }
        for name, (text, read) in gauges.items():
            metrics.gauge(name, text, label)(service).set_function(read)
