"""Connections lent out one by one: a bounded number, a bounded wait, and a wait that can be cancelled.

The semaphore stands in front of SQLAlchemy's pool, which therefore never has to wait itself. It serves in the order of
arrival. From how long connections were used lately the pool knows how long a wait will be: who would get one too late
is told so at once, and a connection is not lent to who has no time left to use it. Without that, under more load than
the database takes, all are served just too late.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import QueuePool
from sqlalchemy.util import await_

from microkit import context
from microkit.db.access import Access
from microkit.db.failure import DatabaseUnavailable, PoolExhausted, is_disconnect, is_full
from microkit.db.holders import Holder, Holders, HolderView
from microkit.db.limit import allowed
from microkit.db.metrics import PoolMetrics
from microkit.db.one_trip import Held
from microkit.db.opening import needs_mending
from microkit.db.prepared import PreparedSelect
from microkit.errors import DeadlineExceeded, DefinitionError

_WEIGHT = 0.1
"""Of the latest use in the average."""
_MARGIN = 2.0
"""How many average uses a taker must have time for."""


class Driver(Protocol):
    """What differs between the drivers."""

    @property
    def holds(self) -> bool:
        """Whether INSERTs may wait for COMMIT, to be sent as one statement with it."""
        ...

    def cut(self, driver: Any) -> None:
        """Ends a connection at once, without waiting."""
        ...

    def lend(self, driver: Any, *, read_only: bool, held: Held | None) -> None:
        """Makes a connection ready for a transaction that has sent nothing yet."""
        ...

    def send_held(self, connection: Connection, held: Held) -> None:
        """Sends as one statement what was held; called inside SQLAlchemy's greenlet."""
        ...

    def fetch_alone(
        self, connection: Connection, statement: PreparedSelect, values: Mapping[str, Any]
    ) -> Sequence[Any]:
        """The rows of a statement that is the whole transaction; called inside SQLAlchemy's greenlet."""
        ...


@dataclass(frozen=True, slots=True)
class PoolState:
    """A pool at one moment. ``size`` is the most connections there may be; ``used`` are lent, ``idle`` are open and
    unused, ``pending`` wait for one. In seconds: for how long a connection is used on average, and how long the next
    taker would wait."""

    name: str
    size: int
    used: int
    idle: int
    pending: int
    typical_use: float
    expected_wait: float
    holders: tuple[HolderView, ...]


class Pool:
    """An engine and its free places. ``driver`` is how to treat the driver's own connections."""

    def __init__(
        self, engine: AsyncEngine, size: int, timeout: float, *, driver: Driver, metrics: PoolMetrics, access: Access
    ) -> None:
        self.engine = engine
        self.access = access
        self.size = size
        self.timeout = timeout
        self.driver = driver
        self.used = 0
        self.pending = 0
        self.metrics = metrics
        self.holders = Holders(metrics.pool)
        self._use = 0.0  # seconds, on average
        self._given_back = -math.inf
        self._free = asyncio.Semaphore(size)
        metrics.watch(used=lambda: self.used, idle=lambda: self.idle, pending=lambda: self.pending)
        kept = engine.sync_engine.pool
        metrics.limited(most=size, idle=kept.size() if isinstance(kept, QueuePool) else 0)
        _watch_opening(engine.sync_engine, metrics.created, access)

    @property
    def idle(self) -> int:
        """Open connections that nobody uses."""
        pool = self.engine.sync_engine.pool
        return pool.checkedin() if isinstance(pool, QueuePool) else 0

    def state(self) -> PoolState:
        """How it is now, and who has its connections."""
        holders = tuple(self.holders.views())
        return PoolState(
            self.metrics.pool, self.size, self.used, self.idle, self.pending, round(self._use, 6),
            round(self.expected_wait, 6), holders,
        )  # fmt: skip

    @property
    def expected_wait(self) -> float:
        """Seconds that the next one would wait for a connection; 0 where nobody waits."""
        return self.pending / self.size * self._use

    @property
    def typical_use(self) -> float:
        """Seconds for which a connection is used, on average."""
        return self._use

    @property
    def stuck(self) -> bool:
        """Whether nobody has given a connection back for as long as anybody waits for one."""
        return time.monotonic() - self._given_back > self.timeout

    async def enter(self) -> None:
        """Takes a place.

        Raises:
            PoolExhausted: none became free in time, or will not.
            DeadlineExceeded: the caller's time was up before.
        """
        if self._free.locked():
            await self._wait()
        else:
            await self._free.acquire()  # does not wait
            self.metrics.waited(0.0)
        self.used += 1

    async def _wait(self) -> None:
        started = time.monotonic()
        timeout = allowed(self.timeout)
        # The wait before one's own turn; the first round in the queue is let in on trust, for averages err.
        if self.pending >= self.size and self._too_late(self.pending / self.size * self._use):
            self.metrics.timed_out()
            raise self._exhausted(f"{self.pending} wait for {self.size} connections already")
        self.pending += 1
        try:
            async with asyncio.timeout(timeout):
                await self._free.acquire()
        except TimeoutError:
            self.metrics.timed_out()
            context.remaining()  # says so where it was the caller's deadline that ended the wait
            raise self._exhausted(f"No connection of {self.size} became free within {timeout:.3g} s") from None
        finally:
            self.pending -= 1
            self.metrics.waited(time.monotonic() - started)
        if self.pending >= self.size and self._too_late(0.0):
            self._free.release()
            self.metrics.timed_out()
            raise self._exhausted("A connection became free too late to be used")

    def _too_late(self, wait: float) -> bool:
        """Whether a connection in ``wait`` seconds is none in time."""
        deadline = context.current().deadline
        needed = wait + _MARGIN * self._use
        return wait > self.timeout or (deadline is not None and needed > deadline - time.monotonic())

    def _exhausted(self, detail: str) -> PoolExhausted:
        return PoolExhausted(detail, headers={"Retry-After": "1"})

    def leave(self, since: float) -> None:
        """Gives a place back that was used since then, a reading of ``time.monotonic()``."""
        self._given_back = now = time.monotonic()
        seconds = now - since
        self.used -= 1
        self._free.release()
        # One that took minutes says little about the others.
        self._use += _WEIGHT * (min(seconds, self.timeout) - self._use)
        self.metrics.used(seconds)


def _watch_opening(engine: Engine, observe: Callable[[float], None], access: Access) -> None:
    @event.listens_for(engine, "do_connect")
    def begins(dialect: object, record: Any, args: object, options: object) -> None:
        record.info["began"] = time.monotonic()

    @event.listens_for(engine, "connect")
    def ends(adapted: object, record: Any) -> None:
        began = record.info.pop("began", None)
        if began is not None:
            observe(time.monotonic() - began)
        if access.lost:  # one that was idle says nothing about whether the server gives others
            access.given()


class Instead(Protocol):
    """Where else a transaction can be, when its pool gives no connection."""

    def failed(self, error: Exception) -> Pool:
        """Told why none was given; the pool to be asked in its place."""
        ...

    def answered(self) -> None:
        """Told that one was given."""
        ...


class Lease:
    """A place in the pool and a connection, both taken when the first statement needs them."""

    __slots__ = ("_connection", "_driver", "_ended", "_holder", "_instead", "_pool", "_read_only", "first", "held")

    def __init__(self, pool: Pool, *, read_only: bool, instead: Instead | None = None) -> None:
        self._pool = pool
        self._instead = instead
        self._read_only = read_only
        self.held: Held | None = None
        self.first: Callable[[Connection], None] | None = None
        """What is sent before anything else, as soon as there is a connection."""
        self._ended = False
        self._holder: Holder | None = None
        self._connection: Connection | None = None
        self._driver: Any = None

    def connection(self) -> Connection:
        """The connection; called inside SQLAlchemy's greenlet.

        Raises:
            DefinitionError: the transaction has ended.
        """
        if self._connection is None:
            if self._ended:
                raise DefinitionError("this transaction has ended: use it inside its block or handler only")
            self._connection = self._connect() if self._instead is None else self._connect_or_instead(self._instead)
            self._driver = driver = self._connection.connection.driver_connection
            self._pool.driver.lend(driver, read_only=self._read_only, held=self.held)
            if (first := self.first) is not None:
                self.first = None
                first(self._connection)
        return self._connection

    @property
    def unused(self) -> bool:
        """Whether nothing was sent yet."""
        return self._connection is None and not self._ended

    def fetch_alone(self, statement: PreparedSelect, values: Mapping[str, Any]) -> Sequence[Any]:
        """The rows of a statement that is the whole transaction; called inside SQLAlchemy's greenlet."""
        return self._pool.driver.fetch_alone(self.connection(), statement, values)

    def hold(self) -> None:
        """Lets INSERTs wait for COMMIT from here on, if nothing was sent yet."""
        if self._connection is None and not self._read_only and self._pool.driver.holds:
            self.held = Held()

    def send_held(self) -> None:
        """Sends what was held, which commits it, too; called inside SQLAlchemy's greenlet."""
        if self.held and self._connection is not None:
            self._pool.driver.send_held(self._connection, self.held)

    def _connect_or_instead(self, instead: Instead) -> Connection:
        self._instead = None
        try:
            made = self._connect()
        except DeadlineExceeded:
            raise
        except Exception as error:  # whatever it is, there is another that can be asked
            if isinstance(error, PoolExhausted) and not self._pool.stuck:
                raise  # it is busy, and what is too much for it would come on top of what another has to do
            self._leave()
            self._pool = instead.failed(error)
            return self._connect()
        instead.answered()
        return made

    def _connect(self) -> Connection:
        if self._holder is None:
            await_(self._pool.enter())
            self._holder = self._pool.holders.take(time.monotonic())
        access = self._pool.access
        try:
            made = self._pool.engine.sync_engine.connect()
        except (OSError, TimeoutError) as error:
            context.remaining()  # says so where it was the caller's deadline that ended the attempt
            access.refused(error)
            raise DatabaseUnavailable("The database cannot be reached", headers={"Retry-After": "1"}) from error
        except DBAPIError as error:
            if is_disconnect(error) or (not is_full(error) and needs_mending(error)):
                access.refused(error)
                raise DatabaseUnavailable("The database takes no connections", headers={"Retry-After": "1"}) from error
            raise
        return made

    def close(self) -> None:
        """Rolls back what is open and gives all back, for good; called inside SQLAlchemy's greenlet."""
        self._ended = True
        try:
            if self._connection is not None:
                self._connection.close()
                self._connection = None
        finally:
            self._leave()

    def _leave(self) -> None:
        holder, self._holder = self._holder, None
        if holder is not None:
            self._pool.holders.give_back(holder)
            self._pool.leave(holder.since)

    def cut(self) -> None:
        """Ends the connection without a word to the server, so that who still waits for an answer gets an error."""
        if self._driver is not None:
            self._pool.driver.cut(self._driver)
