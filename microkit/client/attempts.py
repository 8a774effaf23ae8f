"""The attempts of one call: how often, at which instances, with what pauses.

Another attempt is made only where it does no harm: after a request that was certainly not sent, always; after one whose
answer was lost, was a 500, 502, 503 or 504, or a 429 that says when to come back, if the operation is idempotent or its
request has an ``Idempotency-Key``. It goes to another instance where there is one, after a random pause that grows; the
same instance is asked again no sooner than its ``Retry-After`` says. Each is paid for from the retry budget, and none
begins that could not end before the deadline. Half-way to it an attempt without an answer gets company, where the
operation is idempotent or the settings allow it (:mod:`microkit.client.rescue`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
from opentelemetry.trace import Span
from prometheus_client import Counter

from microkit.client.codec import WireAnswer, WireRequest
from microkit.client.exchange import NOT_SENT, AnswerTooBig, Exchange, why_not_sent
from microkit.client.instance import Instance
from microkit.client.policy import Policy
from microkit.client.rescue import Rescue
from microkit.client.upstream import Outcome, Upstream, outcome_of
from microkit.errors import BadGateway, DeadlineExceeded, Unavailable
from microkit.resilience.backoff import full_jitter, retry_after
from microkit.resilience.hedging import Latency, hedged
from microkit.resilience.time_limit import TimeLimits
from microkit.telemetry.metrics import Family

FIRST_PAUSE: Final = 0.025
LONGEST_PAUSE: Final = 1.0
COMPANY_AFTER: Final = 0.5
"""Share of the time left after which an attempt that may have company gets it."""

_TRIED_AGAIN: Final = frozenset({500, 502, 503, 504})
_IN_FLIGHT: Final = 409
_TOO_MANY: Final = 429


@dataclass(slots=True)
class Attempt:
    """What one attempt came to: an ``answer``, or an ``error`` to raise if it stays the last."""

    instance: Instance
    answer: WireAnswer | None
    error: Exception | None = None
    reason: str = ""
    sent: bool = True
    refused: bool = False
    """Whether nobody took the connection."""

    def good(self) -> bool:
        return self.answer is not None and self.answer.status < 500

    def decides(self) -> bool:
        """Whether it ends a call that another attempt is made for at the same time: it does not ask to come back later,
        because that one is under way (409) or there were too many (429)."""
        answer = self.answer
        later = answer is not None and answer.status in (_IN_FLIGHT, _TOO_MANY) and answer.retry_after is not None
        return self.good() and not later

    def came_to(self) -> WireAnswer:
        if self.answer is None:
            assert self.error is not None  # noqa: S101  one of the two is there
            raise self.error
        return self.answer


@dataclass(slots=True)
class Call:
    """A call under way. ``deadline`` is a reading of ``time.monotonic()``."""

    name: str
    policy: Policy
    wire: WireRequest
    deadline: float
    span: Span
    latency: Latency | None
    rescued: bool = False

    def tell_time_left(self) -> None:
        """Writes into the request what is left of the time, where some has passed since it was made."""
        left = self.deadline - time.monotonic()
        self.wire.headers["Request-Timeout-Ms"] = str(max(1, int(left * 1000)))


class Attempts:
    """Makes the attempts of the calls to one service."""

    def __init__(self, upstream: Upstream, exchange: Exchange, hedges: Family[Counter]) -> None:
        self._upstream = upstream
        self._exchange = exchange
        self._hedges = hedges
        self._service = upstream.service
        self._rescues = TimeLimits()

    async def make(self, call: Call) -> WireAnswer:
        """The answer, a refusal or failure of the other side perhaps.

        Raises:
            Unavailable: no request was sent.
            BadGateway: an answer was lost.
            DeadlineExceeded: the last attempt took longer than one may.
        """
        tried: tuple[Instance, ...] = ()
        last: Attempt | None = None
        number = 1
        while True:
            try:
                if call.policy.hedge_after is None:
                    attempt = await self._rescuable(call, tried, number, unsent=last is not None and not last.sent)
                else:
                    attempt = await self._hedged(call, call.policy.hedge_after, tried)
            except Unavailable:
                if last is None:
                    raise
                return last.came_to()  # says more than that nobody is left to ask
            answer = attempt.answer
            if answer is not None and answer.status < 400:
                return answer
            tried = (*tried, attempt.instance)
            pause = self._pause(call, attempt, number, tried)
            if pause is None or not self._upstream.may_retry(attempt.reason, free=self._is_free(attempt, tried)):
                return attempt.came_to()
            last = attempt
            call.span.add_event(
                "retry", {"reason": attempt.reason, "attempt": number, "instance": attempt.instance.url}
            )
            call.span.set_attribute("http.request.resend_count", number)
            if pause > 0:
                await asyncio.sleep(pause)
            call.tell_time_left()
            number += 1

    def _is_free(self, attempt: Attempt, tried: tuple[Instance, ...]) -> bool:
        """Whether another attempt asks of the service what nobody was asked before."""
        return attempt.refused and self._upstream.balancer.last_resort(tried) is not None

    def _pause(self, call: Call, attempt: Attempt, number: int, tried: tuple[Instance, ...]) -> float | None:
        """Seconds until the next attempt, ``None`` where there is to be none."""
        policy = call.policy
        if number >= policy.attempts:
            return None
        others = self._upstream.balancer.others(tried)
        if not attempt.sent:
            pause = 0.0 if others else full_jitter(number, FIRST_PAUSE, LONGEST_PAUSE)
        elif not policy.repeatable:
            return None
        else:
            pause = full_jitter(number, FIRST_PAUSE, LONGEST_PAUSE)
        answer = attempt.answer
        if answer is not None:
            asked = retry_after(answer.retry_after)
            if answer.status in _TRIED_AGAIN:
                if asked is not None and not others:
                    pause = max(pause, asked)
            elif asked is not None and (answer.status == _TOO_MANY or (answer.status == _IN_FLIGHT and number > 1)):
                pause = max(pause, asked)  # it is about the caller, or its first attempt: true of all instances
            else:
                return None
            attempt.reason = str(answer.status)
        elif isinstance(attempt.error, AnswerTooBig):
            return None
        return pause if time.monotonic() + pause < call.deadline else None

    async def _rescuable(self, call: Call, tried: tuple[Instance, ...], number: int, *, unsent: bool) -> Attempt:
        """One attempt, which gets company after half of the time that is left."""
        policy = call.policy
        call.rescued = False
        if not policy.beside or number >= policy.attempts or policy.attempt_timeout is not None:
            return await self._at_one(call, tried, unsent=unsent)
        asked: list[Instance] = []

        def second() -> Coroutine[Any, Any, Attempt] | None:
            if not (asked and self._upstream.balancer.others(asked) and self._upstream.may_retry("late")):
                return None
            call.span.add_event("retry", {"reason": "late", "attempt": number, "instance": asked[0].url})
            call.tell_time_left()
            return self._at_one(call, (*tried, *asked))

        def given_up() -> None:
            call.rescued = True

        rescue = Rescue(second, good=Attempt.decides, given_up=given_up)
        half = (call.deadline - time.monotonic()) * COMPANY_AFTER
        return await rescue.run(lambda: self._at_one(call, tried, asked, unsent=unsent), self._rescues, half)

    async def _hedged(self, call: Call, delay: float | str, tried: tuple[Instance, ...]) -> Attempt:
        latency = call.latency
        after = delay if isinstance(delay, float) else latency.p95 if latency is not None else 0.0
        asked: list[Instance] = []

        def again() -> Coroutine[Any, Any, Attempt]:
            call.tell_time_left()
            return self._at_one(call, (*tried, *asked), asked)

        attempt, second_won = await hedged(
            lambda: self._at_one(call, tried, asked),
            again,
            after=after,
            allowed=lambda: bool(asked) and self._upstream.may_retry("hedge"),
            good=Attempt.good,
        )
        if second_won is not None:
            self._hedges(self._service, "true" if second_won else "false").inc()
            call.span.add_event("hedge", {"won": second_won, "instances": [instance.url for instance in asked]})
        return attempt

    async def _at_one(
        self, call: Call, tried: tuple[Instance, ...], asked: list[Instance] | None = None, *, unsent: bool = False
    ) -> Attempt:
        """One attempt at one instance, which is noted in ``asked``. ``unsent``: see :meth:`Upstream.pick`."""
        chosen = await self._upstream.pick(tried, unsent=unsent)
        instance = chosen.instance
        if asked is not None:
            asked.append(instance)
        call.span.set_attribute("server.address", instance.host)
        if instance.port is not None:
            call.span.set_attribute("server.port", instance.port)
        outcome = Outcome.LEFT
        began = time.monotonic()
        try:
            answer = await self._ask(call, instance)
            outcome = outcome_of(answer.status, answer.retry_after)
            return Attempt(instance, answer)
        except asyncio.CancelledError:
            now = time.monotonic()
            if (call.rescued or now >= call.deadline) and now - began >= call.policy.fair:
                outcome = Outcome.FAILED  # it had its time
            raise
        except (aiohttp.ClientError, OSError, AnswerTooBig) as error:  # a TimeoutError is an OSError
            outcome = _outcome_of(error)
            return self._failed(call, instance, error)
        finally:
            chosen.done(outcome)
            if call.latency is not None and outcome is Outcome.ANSWERED:
                call.latency.add(time.monotonic() - began)

    async def _ask(self, call: Call, instance: Instance) -> WireAnswer:
        if call.policy.attempt_timeout is None:
            return await self._exchange.ask(call.wire, instance.url)
        async with asyncio.timeout(call.policy.attempt_timeout):
            return await self._exchange.ask(call.wire, instance.url)

    def _failed(self, call: Call, instance: Instance, error: Exception) -> Attempt:
        if isinstance(error, AnswerTooBig):
            return Attempt(instance, None, error, "too-big")
        if isinstance(error, NOT_SENT):
            said = Unavailable(f"{self._service} cannot be reached: {why_not_sent(error)}")
            return Attempt(instance, None, said, "connect", sent=False, refused=not isinstance(error, TimeoutError))
        if isinstance(error, TimeoutError):
            seconds = call.policy.attempt_timeout or 0.0
            late = DeadlineExceeded(f"{self._service} did not answer {call.name} within {seconds:.3g} s")
            return Attempt(instance, None, late, "timeout")
        lost = BadGateway(f"{self._service} broke off its answer: {type(error).__name__}")
        lost.__cause__ = error
        return Attempt(instance, None, lost, "broken")


def _outcome_of(error: Exception) -> Outcome:
    if isinstance(error, AnswerTooBig):
        return Outcome.ANSWERED
    refused = isinstance(error, NOT_SENT) and not isinstance(error, TimeoutError)
    return Outcome.AWAY if refused else Outcome.FAILED
