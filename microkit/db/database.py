"""The service's database: its pool, its transactions and their retries."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import MetaData, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from microkit import context
from microkit.db import engines
from microkit.db.access import Access
from microkit.db.failure import (
    DatabaseUnavailable,
    PoolExhausted,
    StorageFull,
    is_busy,
    is_disconnect,
    is_full,
    is_interrupted,
    is_overburdened,
    is_read_only,
    is_transient,
)
from microkit.db.gathered import GatheredInsert, Gatherer
from microkit.db.leaks import LeakWatch
from microkit.db.metrics import PoolMetrics
from microkit.db.notices import Notices
from microkit.db.opening import LEAST, is_over_soon, needs_mending, said_of_opening, unwritable
from microkit.db.options import DEFAULT, PoolOptions
from microkit.db.pool import Lease, Pool, PoolState
from microkit.db.prepared import PreparedSelect
from microkit.db.replica import CONNECT_TIMEOUT, Replica
from microkit.db.shield import finish
from microkit.db.signal import Signal
from microkit.db.transaction import Dialect, OutboxWriter, Transaction
from microkit.errors import ConfigurationError, DeadlineExceeded
from microkit.telemetry import Telemetry

Result = TypeVar("Result")

_DAY = 86_400.0


class Database:
    """One service's database, SQLite or PostgreSQL by its URL. It belongs to one event loop.

    ``pool_size`` connections are kept, ``max_overflow`` more are opened at need. ``pool_timeout`` and
    ``statement_timeout`` are seconds; the deadline of the work under way shortens both. ``tables`` are the service's.

    ``outbox_writer`` is called once before COMMIT with the events that a transaction published.

    Raises:
        ConfigurationError: the URL names no database we know, or its driver is not installed.
    """

    def __init__(
        self,
        url: str,
        *,
        telemetry: Telemetry,
        pool_size: int = 10,
        max_overflow: int = 5,
        pool_timeout: float = 5.0,
        statement_timeout: float = 30.0,
        tables: MetaData | None = None,
        options: PoolOptions = DEFAULT,
    ) -> None:
        self._url = url
        self._patience = pool_timeout
        self._application = telemetry.service
        limits = engines.Limits(pool_size + max_overflow, statement_timeout, pool_timeout, overflow=max_overflow)
        made = engines.make(url, limits, application=telemetry.service, options=options)
        self.dialect: Dialect = made.dialect
        self.engine: AsyncEngine = made.write
        self.tables = tables
        self.pooled = options.pgbouncer and made.dialect == "postgresql"
        """Whether a pooler stands between, so that a session is nobody's own."""
        self.outbox_writer: OutboxWriter | None = None
        self.where = made.where
        """Its URL without the password, for messages."""
        self._file: Path | None = made.file
        self._signals: dict[str, Signal] = {}
        self._shared: set[str] = set()
        self._gatherers: dict[GatheredInsert, Gatherer] = {}
        self._notices: Notices | None = None
        if made.connect is not None:
            self._notices = Notices(made.connect, lambda name: self.signal(name).set(), telemetry.logger)

        self._access = Access(telemetry.logger)

        def pool(name: str, engine: AsyncEngine, size: int, access: Access = self._access) -> Pool:
            metrics = PoolMetrics(telemetry.metrics, name)
            return Pool(engine, size, pool_timeout, driver=made.driver, metrics=metrics, access=access)

        self._writers = pool("write", made.write, made.writers)
        self._readers = self._writers if made.read is made.write else pool("read", made.read, pool_size + max_overflow)
        self._replica: Replica | None = None
        if options.replica_url is not None:
            quick = replace(limits, connect_timeout=CONNECT_TIMEOUT)
            copy = engines.make(options.replica_url, quick, application=telemetry.service, options=options)
            quiet = Access(telemetry.logger)  # the replica tells by itself
            self._replica = Replica(pool("replica", copy.read, quick.size, quiet), self._readers, telemetry.logger)
        self._leaks = LeakWatch(options.leak_after, lambda: [each.holders for each in self._pools()], telemetry)
        self.replicated = self._replica is not None
        """Whether some transactions are sent to a copy."""

    @property
    def reads_apart(self) -> bool:
        """Whether transactions that only read have connections of their own, and wait for no writer."""
        return self._readers is not self._writers or self.replicated

    def expected_wait(self, *, read_only: bool = False) -> float:
        """Seconds that an operation which began now would wait for its connection; 0 where nobody waits. One that only
        reads would get it from the replica, while there is one."""
        return self._pool(read_only=read_only, replica=read_only).expected_wait

    def typical_use(self, *, read_only: bool = False) -> float:
        """Seconds for which such an operation keeps its connection, on average."""
        return self._pool(read_only=read_only, replica=read_only).typical_use

    def _pool(self, *, read_only: bool, replica: bool) -> Pool:
        """Where a transaction goes first."""
        if not read_only:
            return self._writers
        return self._replica.pool if replica and self._replica is not None and self._replica.asked else self._readers

    def pools(self) -> list[PoolState]:
        """How the pools are: where there is one connection that writes, it has a pool of its own."""
        return [each.state() for each in self._pools()]

    def _pools(self) -> list[Pool]:
        distinct = [self._writers] if self._readers is self._writers else [self._writers, self._readers]
        return distinct if self._replica is None else [*distinct, self._replica.pool]

    async def start(self) -> None:
        """Opens the first connection. A server that is starting, or has none left just now, is waited for as long as
        anybody waits for a connection.

        Raises:
            ConfigurationError: the database is not there, or refuses us.
            DatabaseUnavailable: it cannot be reached at present.
        """
        if self._file is not None:
            _make_folder(self._file, self.where)
        until = time.monotonic() + self._patience
        while (error := await self._refusal()) is not None:
            cause = error if isinstance(error, DBAPIError) else error.__cause__ or error
            if is_over_soon(cause) and time.monotonic() < until:
                await asyncio.sleep(random.uniform(0, 0.5))  # noqa: S311  no secret
                continue
            why = said_of_opening(cause)
            if isinstance(error, DBAPIError) or needs_mending(cause):
                raise ConfigurationError(f"the database {self.where} cannot be opened: {why}") from error
            raise DatabaseUnavailable(f"the database {self.where} cannot be reached: {why}") from error
        self._access.watched = True
        self._leaks.start()

    async def _refusal(self) -> DBAPIError | DatabaseUnavailable | None:
        try:
            await self.ping()
        except (DBAPIError, DatabaseUnavailable) as error:
            return error
        return None

    async def close(self) -> None:
        """Closes all connections that nobody uses; the others when they are given back. It is called last, when the
        work has ended."""
        await finish(self._close_all())

    async def _close_all(self) -> None:
        await self._leaks.stop()
        if self._notices is not None:
            await self._notices.close()
        for engine in {each.engine for each in self._pools()}:
            await engine.dispose()

    async def ping(self) -> None:
        """Asks the database for an answer.

        Raises:
            DatabaseUnavailable: it gives none.
        """
        async with self.transaction(read_only=True) as tx:
            await tx.execute(text("SELECT 1"))

    @asynccontextmanager
    async def administration(self, patience: float) -> AsyncIterator[AsyncEngine]:
        """An engine of its own for changing tables: no time limit, SQLite's foreign keys off, two connections.

        ``patience`` is how many seconds it waits for another process that has the SQLite file.
        """
        if self.dialect == "sqlite" and self._file is None:
            yield self.engine  # in memory: another engine would see another database
            return
        limits = engines.Limits(2, _DAY, patience)
        options = PoolOptions(pgbouncer=self.pooled)
        made = engines.make(self._url, limits, application=self._application, foreign_keys=False, options=options)
        try:
            yield made.write
        finally:
            for engine in (made.write, made.read):
                await finish(engine.dispose())

    def signal(self, name: str) -> Signal:
        """The wake-up of that name, the same one each time."""
        found = self._signals.get(name)
        if found is None:
            found = self._signals[name] = Signal()
        return found

    def share(self, name: str) -> None:
        """Lets transactions that wake that signal wake it in the other processes on this database, too.

        They have to :meth:`listen`, and only PostgreSQL can. It takes no part in the transaction.
        """
        self._shared.add(name)

    def listen(self, name: str) -> None:
        """Lets :meth:`signal` be set by other processes on this database."""
        if self._notices is not None:
            self._notices.listen(name)

    @property
    def hears(self) -> bool:
        """Whether other processes are heard at present. If not, look into the table now and then."""
        return self._notices is not None and self._notices.hears

    @asynccontextmanager
    async def transaction(self, *, read_only: bool = False, replica: bool = False) -> AsyncIterator[Transaction]:
        """One transaction: committed when the block ends, rolled back when it raises or is cancelled.

        ``replica`` lets one that is ``read_only`` be served by the read replica, where there is one, which may not have
        seen the latest commits yet. While it is away, the primary serves them.

        Raises:
            DatabaseUnavailable: no connection to be had in time, or the database cannot do it now.
            StorageFull: there is no room to write.
            DeadlineExceeded: the deadline passed, or a statement took longer than it may.
            CommitUnknown: the connection was lost during COMMIT.
        """
        pool = self._pool(read_only=read_only, replica=replica)
        instead = self._replica if self._replica is not None and pool is self._replica.pool else None
        lease = Lease(pool, read_only=read_only, instead=instead)
        tx = Transaction(
            lease,
            dialect=self.dialect,
            read_only=read_only,
            outbox_writer=self.outbox_writer,
            wake=self._set_signal,
            gather=self._gather,
        )
        try:
            yield tx
            await tx.prepare()
        except BaseException as error:
            await finish(tx.rollback(), cut=lease.cut)
            if isinstance(error, Exception):
                if not read_only and is_read_only(error):
                    raise DatabaseUnavailable("The database can only be read", headers={"Retry-After": "1"}) from error
                raise_translated(error)
            raise
        try:
            await finish(tx.commit(), cut=lease.cut)
        except Exception as error:
            raise_translated(error)
            raise

    async def run(
        self,
        work: Callable[[Transaction], Awaitable[Result]],
        *,
        read_only: bool = False,
        replica: bool = False,
        attempts: int = 5,
    ) -> Result:
        """Runs ``work`` in a transaction of its own, and the whole of it again where that is safe and may help.

        That is: a serialization failure or a deadlock, a connection lost before COMMIT was sent, a locked SQLite file.
        ``work`` must therefore do nothing outside the transaction that it must not do twice.

        Raises:
            CommitUnknown: the connection was lost during COMMIT. This is not tried again.
            DatabaseUnavailable: the database stayed away through all ``attempts``.
        """
        for attempt in range(1, attempts + 1):
            try:
                async with self.transaction(read_only=read_only, replica=replica) as tx:
                    return await work(tx)
            except Exception as error:
                if attempt == attempts or not is_transient(error) or isinstance(error, PoolExhausted):
                    if is_disconnect(error):
                        raise DatabaseUnavailable("The connection to the database was lost") from error
                    raise
            pause = random.uniform(0, min(1.0, 0.02 * 2**attempt))  # noqa: S311  full jitter, no secret
            left = context.remaining()
            await asyncio.sleep(pause if left is None else min(pause, left))
        raise AssertionError("attempts must be at least 1")

    async def _gather(self, insert: GatheredInsert, row: Mapping[str, Any]) -> bool:
        found = self._gatherers.get(insert)
        if found is None:
            found = self._gatherers[insert] = Gatherer(insert, self._send_alone)
        return await found.write(row)

    async def _send_alone(self, statement: PreparedSelect, values: Mapping[str, Any]) -> None:
        async with self.transaction() as tx:
            await tx.fetch_alone(statement, values)

    def _set_signal(self, name: str) -> None:
        signal = self.signal(name)
        signal.set()
        if self._notices is not None and name in self._shared and not signal.alone:
            self._notices.tell(name)


def _make_folder(file: Path, where: str) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"the folder of {where} cannot be made ({error.strerror}): let this user write there, or name another file "
            "in the URL"
        ) from error
    if why := unwritable(file, LEAST):
        raise ConfigurationError(f"the database {where} cannot be used: {why}")


def raise_translated(error: Exception) -> None:
    """Raises what a caller of ours should see instead of ``error``; returns where that is ``error`` itself."""
    if is_interrupted(error):
        raise DeadlineExceeded("A statement took longer than it may") from error
    if is_busy(error):
        raise DatabaseUnavailable("Another process keeps the database file locked") from error
    if is_full(error):
        raise StorageFull from error
    if is_overburdened(error):
        raise DatabaseUnavailable("The database cannot do this at present", headers={"Retry-After": "1"}) from error
