"""Refusing what cannot be done in time, before anything is done for it: 503, and when to come back."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from random import randint
from typing import Final, Literal

import orjson

from microkit.contract import SIGNED_IN
from microkit.db import Database
from microkit.errors import Problem, Unavailable
from microkit.request_head import bearer
from microkit.resilience.patience import LEAST, Patience
from microkit.resilience.shed import INTERVAL, Gate, Overloaded
from microkit.telemetry import Telemetry
from microkit.web.access import Access
from microkit.web.call import HeaderList, Reply
from microkit.web.limits import Limits
from microkit.web.problems import PROBLEM_HEADERS
from microkit.web.route import Transacts

CRITICAL: Final = b"critical"
"""The value of ``Request-Priority`` that goes before others. It is believed of services of the system only."""

PRIORITY: Final = b"request-priority"

Why = Literal["queue", "concurrency", "database"]

_LARGE_BODY: Final = 64 * 1024
_FORGOTTEN: Final = 2.0
"""Seconds without a request after which an overload of the database is over."""
_ONE_WRITER: Final = 3
"""As many times the patience has a request where one transaction writes at a time: with SQLite, on a laptop."""
_LATEST: Final = 3
"""Seconds after which the last of those that were refused are asked to come again."""


class ServiceOverloaded(Unavailable, status=503, title="The service has more to do than it can"): ...


class _DatabaseQueue:
    """The queue before the database's connections: bounded by time as the gate's is, and looked at from outside."""

    def __init__(self, database: Database, patience: float, *, read_only: bool) -> None:
        self._database = database
        self._read_only = read_only
        self._patience = Patience(patience)
        self._since = 0.0
        self._came = self._refused = 0
        self._least = math.inf

    def too_long(self, *, critical: bool = False) -> bool:
        """Whether who came now would wait for too long. It may be asked more than once for a request."""
        wait = self._wait()
        patience = self._patience
        if patience.overloaded:
            self._review(wait)
        return wait > (patience.most if critical else patience.seconds)

    def let_in(self) -> None:
        """A request goes on to the database."""
        self._came += 1

    def refuse(self) -> None:
        """A request does not, because it would wait for too long."""
        patience = self._patience
        if not patience.overloaded:
            self._since, self._came, self._refused, self._least = time.monotonic(), 0, 0, self._wait()
        self._came += 1
        self._refused += 1
        patience.lost(self._tight())

    def _review(self, wait: float) -> None:
        self._least = min(self._least, wait)
        if (now := time.monotonic()) - self._since < INTERVAL:
            return
        if now - self._since > _FORGOTTEN:
            self._patience.calm()
        self._patience.review(self._came, self._refused, self._tight(), standing=self._least > 0.0)
        self._since, self._came, self._refused, self._least = now, 0, 0, math.inf

    def _wait(self) -> float:
        return self._database.expected_wait(read_only=self._read_only)

    def _tight(self) -> float:
        return max(LEAST, self._database.typical_use(read_only=self._read_only))


class Entrance:
    """Where requests come in. ``Limits.shedding`` off leaves it open."""

    def __init__(self, limits: Limits, telemetry: Telemetry, access: Access, database: Database | None) -> None:
        self._on = limits.shedding
        self._gate = gate = Gate(most=limits.concurrency, patience=limits.queue)
        self._database: dict[Transacts | None, _DatabaseQueue] = {}
        if database is not None:
            patience = limits.queue * (_ONE_WRITER if database.dialect == "sqlite" else 1)
            writes = _DatabaseQueue(database, patience, read_only=False)
            apart = database.reads_apart
            reads = _DatabaseQueue(database, limits.queue, read_only=True) if apart else writes
            self._database = {"reads": reads, "writes": writes}
        self._access = access
        self._body = orjson.dumps(ServiceOverloaded("Come back as Retry-After says").document())
        metrics = telemetry.metrics
        self._shed = metrics.counter(
            "http_server_shed_requests_total", "Requests refused because there was too much to do.", ("reason",)
        )
        metrics.gauge(
            "http_server_concurrency_limit", "Requests that may be worked on at once, at present."
        )().set_function(lambda: gate.limit)
        metrics.gauge("http_server_queued_requests", "Requests that wait for a place.")().set_function(
            lambda: gate.waiting
        )
        metrics.gauge("http_server_overloaded", "1 while the event loop has no pause.")().set_function(
            lambda: gate.overloaded
        )

    def enter_now(self, waited: float, *, transacts: Transacts | None) -> bool:
        """Whether a request that has been there for ``waited`` seconds may go on at once."""
        if not self._on:
            return True
        if (queue := self._database.get(transacts)) is None:
            return self._gate.enter_now(waited)
        if queue.too_long() or not self._gate.enter_now(waited):
            return False  # enter() counts it
        queue.let_in()
        return True

    async def enter(
        self, waited: float, headers: Mapping[bytes, bytes], *, transacts: Transacts | None
    ) -> Reply | None:
        """Waits for a place where that makes sense; what to answer where it does not."""
        critical = PRIORITY in headers and headers[PRIORITY] == CRITICAL and await self._is_service(headers)
        why: Why = "database"
        queue = self._database.get(transacts)
        if queue is not None and queue.too_long(critical=critical):
            queue.refuse()
        else:
            try:
                await self._gate.enter(waited, critical=critical)
            except Overloaded as error:
                why = error.reason
            else:
                if queue is not None:
                    queue.let_in()
                return None
        self._shed(why).inc()
        return self._refusal(headers)

    def leave(self, seconds: float) -> None:
        """A request that went in is done, after ``seconds``."""
        if self._on:
            self._gate.leave(seconds)

    def close(self) -> None:
        self._gate.close()

    async def _is_service(self, headers: Mapping[bytes, bytes]) -> bool:
        """A user's word counts for nothing here, nor a token's before it is verified."""
        try:
            principal = await self._access.admit(bearer(headers.get(b"authorization")), (SIGNED_IN,))
        except Problem:
            return False
        return principal.is_service

    def _refusal(self, headers: Mapping[bytes, bytes]) -> Reply:
        # Random, so that those who were refused together do not come again together.
        wait = b"%d" % randint(1, _LATEST)  # noqa: S311  jitter, no secret
        told: HeaderList = [*PROBLEM_HEADERS, (b"retry-after", wait)]
        length = headers.get(b"content-length", b"0")
        if b"transfer-encoding" in headers or not length.isdigit() or int(length[:9]) > _LARGE_BODY:
            told.append((b"connection", b"close"))  # nobody is going to read that
        return Reply(503, told, self._body)
