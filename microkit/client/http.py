"""Calls to another service over HTTP, with aiohttp."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Hashable, Mapping
from typing import Any, Final, Generic, TypeVar

import aiohttp
from opentelemetry.trace import SpanKind, Status, StatusCode

from microkit.auth.issuer import ServiceTokens
from microkit.client.attempts import Attempts, Call
from microkit.client.codec import OperationCodec, WireAnswer, WireRequest
from microkit.client.exchange import Exchange
from microkit.client.outgoing import outgoing_headers, time_allowed
from microkit.client.policy import Policies
from microkit.client.upstream import Upstream
from microkit.context import WorkContext, current
from microkit.contract import Operation
from microkit.errors import DeadlineExceeded
from microkit.resilience.bulkhead import Bulkhead, BulkheadFull
from microkit.resilience.collapse import Collapser
from microkit.resilience.hedging import Latency
from microkit.resilience.time_limit import TimeLimits
from microkit.settings.clients import P95, ClientSettings
from microkit.telemetry import Telemetry

R = TypeVar("R")

_ERROR: Final = Status(StatusCode.ERROR)
_ENDED: Final = frozenset({"timeout", "CancelledError"})


class _Plan(Generic[R]):
    """What is known of the calls of one operation before the first."""

    def __init__(self, operation: Operation[..., R], policies: Policies, service: str) -> None:
        self.operation = operation
        self.codec = OperationCodec(operation)
        self.policy = policies.of(operation)
        self.name = operation.qualified_name
        self.span_name = f"{operation.method} {operation.path}"
        self.attributes = {
            "http.request.method": operation.method,
            "url.template": operation.path,
            "peer.service": service,
        }
        self.latency = Latency() if self.policy.hedge_after == P95 else None


class HttpCaller:
    """Carries out the calls to one service.

    ``tokens`` are what the service calls with in its own name; without them it can only pass its caller's token on.
    ``timeout`` (seconds) bounds a call for which neither its operation nor ``clients``, the settings, name another; the
    caller's deadline bounds every call, its retries and the waiting for its turn included.
    A call whose answer was lost raises :class:`BadGateway`: it may have been carried out. :class:`Unavailable` means
    that it was not sent.
    """

    def __init__(
        self,
        upstream: Upstream,
        *,
        session: aiohttp.ClientSession,
        telemetry: Telemetry,
        tokens: ServiceTokens | None = None,
        timeout: float = 10.0,
        clients: Mapping[str, ClientSettings] | None = None,
    ) -> None:
        self.upstream = upstream
        self._service = upstream.service
        self._policies = Policies(upstream.service, clients or {}, timeout)
        self._telemetry = telemetry
        self._durations = telemetry.metrics.http_client
        self._tokens = tokens
        self._bulkhead = Bulkhead(upstream.service, self._policies.concurrency, self._policies.queue_timeout)
        self._plans: dict[Operation[..., Any], _Plan[Any]] = {}
        self._limits = TimeLimits()
        self._collapser: Collapser[WireAnswer] = Collapser()
        metrics, label = telemetry.metrics, ("server_address",)
        hedges = metrics.counter(
            "http_client_hedges_total", "Second attempts beside a late first.", (*label, "second_won")
        )
        self._attempts = Attempts(upstream, Exchange(self._service, session, self._policies), hedges)
        self._crowded = metrics.counter(
            "http_client_bulkhead_refused_total", "Calls that waited for their turn in vain.", label
        )(self._service)
        self._collapsed = metrics.counter(
            "http_client_collapsed_total", "Calls that were answered with another's answer.", label
        )(self._service)
        metrics.gauge("http_client_waiting_requests", "Calls that wait for their turn.", label)(
            self._service
        ).set_function(lambda: self._bulkhead.waiting)

    async def call(self, operation: Operation[..., R], arguments: Mapping[str, Any]) -> R:
        plan: _Plan[R] | None = self._plans.get(operation)
        if plan is None:
            plan = self._plans[operation] = _Plan(operation, self._policies, self._service)
        context = current()
        wire = plan.codec.request(arguments)
        if plan.policy.collapse:
            answer = await self._collapse(plan, wire, context)
        else:
            answer = await self._call(plan, wire, context)
        return plan.codec.result(answer)

    async def _call(self, plan: _Plan[Any], wire: WireRequest, context: WorkContext) -> WireAnswer:
        operation = plan.operation
        seconds = time_allowed(operation, context, plan.policy.timeout)
        started = time.monotonic()
        status: int | str = ""
        failure = ""
        with self._telemetry.span(plan.span_name, kind=SpanKind.CLIENT, attributes=plan.attributes) as span:
            limit = self._limits.begin(seconds)
            try:
                wire.headers.update(outgoing_headers(operation, context, seconds, self._tokens))
                call = Call(plan.name, plan.policy, wire, started + seconds, span, plan.latency)
                answer = await self._in_turn(call)
            except asyncio.CancelledError:
                failure = "timeout" if limit.passed else "CancelledError"
                if self._limits.end(limit):
                    raise self._late(plan, seconds) from None
                raise
            except Exception as error:
                failure = type(error).__name__
                raise
            else:
                status = answer.status
                span.set_attribute("http.response.status_code", status)
                if status >= 400:
                    failure = str(status)  # as OpenTelemetry's conventions want it
                    span.set_status(_ERROR)
                return answer
            finally:
                if failure not in _ENDED:
                    self._limits.end(limit)
                self._durations(self._service, operation.method, operation.path, status, failure).observe(
                    time.monotonic() - started
                )

    async def _in_turn(self, call: Call) -> WireAnswer:
        if not self._bulkhead.try_enter():
            await self._wait_for_room()
            call.tell_time_left()
        try:
            self.upstream.begin()
            return await self._attempts.make(call)
        finally:
            self._bulkhead.leave()

    def _late(self, plan: _Plan[Any], seconds: float) -> DeadlineExceeded:
        return DeadlineExceeded(f"{self._service} did not answer {plan.name} within {seconds:.3g} s")

    async def _wait_for_room(self) -> None:
        try:
            await self._bulkhead.enter()
        except BulkheadFull:
            self._crowded.inc()
            raise

    async def _collapse(self, plan: _Plan[Any], wire: WireRequest, context: WorkContext) -> WireAnswer:
        """The answer to the same question of the same caller, where it is being asked."""
        seconds = time_allowed(plan.operation, context, plan.policy.timeout)
        identity = outgoing_headers(plan.operation, context, seconds, self._tokens).get("Authorization")
        key: Hashable = (plan.operation, wire.target, tuple(sorted(wire.headers.items())), identity, context.tenant)
        deadline = time.monotonic() + seconds
        while True:
            joins = self._collapser.joins(key)
            try:
                async with asyncio.timeout_at(asyncio.get_running_loop().time() + deadline - time.monotonic()):
                    answer = await self._collapser.share(key, lambda: self._call(plan, wire, context))
            except TimeoutError:
                raise self._late(plan, seconds) from None
            except DeadlineExceeded:
                if joins and time.monotonic() < deadline:
                    continue  # the other's time was shorter
                raise
            if joins:
                self._collapsed.inc()
            return answer
