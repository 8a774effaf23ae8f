"""Where a process can die: before and after every commit, publish, acknowledgement and call, each by a name.

Nothing in the library knows of it. Commits are seen where SQLAlchemy hands them to the driver, messages in a bus that
wraps the real one, calls in the typed clients, and those that are made by hand in aiohttp's tracing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Final
from unittest import mock
from urllib.parse import urlsplit

import aiohttp
from sqlalchemy import Connection, Dialect, Engine, event
from sqlalchemy.pool import Pool
from sqlalchemy.util import await_

from microkit.bus.memory import MemoryBus, MemoryConsumer
from microkit.bus.port import Consumer, Delivery, Lag, Promises
from microkit.contract import Operation
from microkit.instance import Instance
from microkit.message import Message
from microkit.telemetry.logs import serving

BEFORE: Final = "before"
AFTER: Final = "after"

_WRITES: Final = re.compile(
    r'\b(?:INSERT(?: OR \w+)? INTO|(?<!FOR )(?<!DO )UPDATE|DELETE FROM)\s+"?(\w+)"?', re.IGNORECASE
)
_CHANGED: Final = """
SELECT relname FROM pg_locks JOIN pg_class ON pg_class.oid = relation
WHERE pid = pg_backend_pid() AND mode = 'RowExclusiveLock' AND relkind IN ('r', 'p')
  AND pg_current_xact_id_if_assigned() IS NOT NULL
ORDER BY relname
"""
# What differs from run to run in a URL's path: ids, hashes, addresses, numbers.
_VARIES: Final = re.compile(r"^(?:\d+|[0-9a-f-]{32,}|[A-Z0-9]{40,}|[\w.-]{64,})$")


class Watch:
    """Names the points that are passed, and tells ``reached`` of each. While it is not ``on`` it sees nothing.

    The name of a point says what happens there; the number of times that the same has happened before is added, so that
    it names the same moment in each run.
    """

    def __init__(self, reached: Callable[[str], None]) -> None:
        self.on = False
        self._ports: dict[int, str] = {}
        self._owners: dict[int, str] = {}
        self._reached = reached
        self._counts: Counter[str] = Counter()

    @contextmanager
    def around(self, what: str) -> Iterator[None]:
        """``what`` happens in the block. There is no point after it where it fails."""
        if not self.on:
            yield
            return
        self._counts[what] += 1
        times = self._counts[what]
        name = what if times == 1 else f"{what} (#{times})"
        self._reached(f"{BEFORE} {name}")
        yield
        if self.on:
            self._reached(f"{AFTER} {name}")

    def call_begins(self, what: str) -> str:
        """As :meth:`around`, where beginning and end are told apart: the name for :meth:`call_ended`, if any."""
        if not self.on:
            return ""
        self._counts[what] += 1
        times = self._counts[what]
        name = what if times == 1 else f"{what} (#{times})"
        self._reached(f"{BEFORE} {name}")
        return name

    def call_ended(self, name: str) -> None:
        if self.on and name:
            self._reached(f"{AFTER} {name}")

    def see(self, instances: Mapping[str, Instance]) -> None:
        """Sees what these instances do from now on."""
        for name, instance in instances.items():
            self._ports[urlsplit(instance.url).port or 0] = name
            self._trace(instance.parts.session)
            for caller in instance.parts.callers.values():
                self._wrap(caller, name)
            if instance.parts.database is not None:
                self._owners[id(instance.parts.database.engine.sync_engine.dialect)] = name
        self.on = True

    def owner(self, dialect: Dialect) -> str:
        """Whose database it is."""
        return self._owners.get(id(dialect), "somebody")

    def _wrap(self, caller: Any, who: str) -> None:
        call = caller.call

        async def watched(operation: Operation[..., Any], arguments: Mapping[str, Any]) -> Any:
            if serving.get() != who:  # it is the test that calls
                return await call(operation, arguments)
            with self.around(f"call of {operation.qualified_name} by {who}"):
                return await call(operation, arguments)

        caller.call = watched

    def _trace(self, session: aiohttp.ClientSession) -> None:
        tracing = aiohttp.TraceConfig()

        async def begins(_session: object, context: SimpleNamespace, asked: aiohttp.TraceRequestStartParams) -> None:
            who = serving.get()
            context.name = self.call_begins(self._call(asked, who)) if who else ""  # else it is the test that calls

        async def ended(_session: object, context: SimpleNamespace, _answer: aiohttp.TraceRequestEndParams) -> None:
            self.call_ended(context.name)

        tracing.on_request_start.append(begins)
        tracing.on_request_end.append(ended)
        tracing.freeze()
        session.trace_configs.append(tracing)

    def _call(self, asked: aiohttp.TraceRequestStartParams, who: str) -> str:
        path = "/".join("{}" if _VARIES.match(part) else part for part in asked.url.path.split("/"))
        whom = self._ports.get(asked.url.port or 0, asked.url.host or "")
        return f"call of {asked.method} {path} at {whom} by {who}"


class Commits:
    """Sees the commits of every database of the process, by the tables that they change; ``watch`` is the life's."""

    def __init__(self) -> None:
        self.watch: Watch | None = None
        self._opened: list[Any] = []
        self._out: set[Any] = set()
        self._sent: dict[int, list[str]] = {}
        self._changes: dict[int, int] = {}
        self._wrapped: set[int] = set()

    def take(self) -> list[Any]:
        """The drivers' connections that were opened since this was asked before."""
        opened, self._opened = self._opened, []
        return opened

    def abandon(self) -> None:
        """The dead gave nothing back that it had taken out of its pools, which would complain about it."""
        for record in self._out:
            record.fairy_ref = None
        self._out.clear()

    @contextmanager
    def seen(self) -> Iterator[None]:
        """While the block lasts."""
        listeners: list[tuple[Any, str, Callable[..., None]]] = [
            (Pool, "connect", self._connected),
            (Pool, "checkout", self._checked_out),
            (Pool, "checkin", self._checked_in),
            (Engine, "engine_connect", self._wrap),
        ]
        for whom, name, listener in listeners:
            event.listen(whom, name, listener)
        try:
            with self._one_trip():
                yield
        finally:
            for whom, name, listener in listeners:
                event.remove(whom, name, listener)

    def _connected(self, connection: Any, _record: object) -> None:
        driver = connection.driver_connection
        self._opened.append(driver)
        if hasattr(driver, "set_trace_callback"):  # SQLite
            sent = self._sent[id(driver)] = []
            await_(driver.set_trace_callback(sent.append))

    def _checked_in(self, _connection: object, record: Any) -> None:
        self._out.discard(record)

    def _checked_out(self, connection: Any, record: Any, _proxy: object) -> None:
        self._out.add(record)
        driver = connection.driver_connection
        if id(driver) in self._sent:
            self._sent[id(driver)].clear()
            self._changes[id(driver)] = driver.total_changes

    def _wrap(self, connection: Connection) -> None:
        dialect = connection.dialect
        if id(dialect) in self._wrapped:
            return
        self._wrapped.add(id(dialect))
        commit = dialect.do_commit

        def do_commit(adapted: Any) -> None:
            with self._around(self._tables(adapted), dialect):
                commit(adapted)

        dialect.do_commit = do_commit  # type: ignore[method-assign, assignment]  # of this one engine

    @contextmanager
    def _around(self, tables: Sequence[str], dialect: Dialect) -> Iterator[None]:
        if self.watch is None or not tables:
            yield
            return
        with self.watch.around(f"commit of {', '.join(tables)} by {self.watch.owner(dialect)}"):
            yield

    def _tables(self, adapted: Any) -> list[str]:
        """What the open transaction of a connection changes."""
        if self.watch is None or not self.watch.on:
            return []
        driver = adapted.driver_connection
        if id(driver) in self._sent:
            if driver.total_changes == self._changes[id(driver)]:
                return []
            return _written("\n".join(self._sent[id(driver)]))
        if not driver.is_in_transaction():
            return []
        return [row[0] for row in await_(driver.fetch(_CHANGED))]

    @contextmanager
    def _one_trip(self) -> Iterator[None]:
        """Transactions that PostgreSQL gets as one statement have no COMMIT of their own."""
        try:
            from microkit.db.postgresql import PostgresDriver  # noqa: PLC0415  an extra
        except ImportError:
            yield
            return
        send, fetch = PostgresDriver.send_held, PostgresDriver.fetch_alone

        def send_held(driver: Any, connection: Connection, held: Any) -> None:
            with self._around(_written(held.as_one()[0]), connection.dialect):
                send(driver, connection, held)

        def fetch_alone(driver: Any, connection: Connection, statement: Any, values: Any) -> Any:
            with self._around(_written(statement.sql(connection.dialect)), connection.dialect):
                return fetch(driver, connection, statement, values)

        with (
            mock.patch.object(PostgresDriver, "send_held", send_held),
            mock.patch.object(PostgresDriver, "fetch_alone", fetch_alone),
        ):
            yield


def _written(sql: str) -> list[str]:
    return sorted({found.lower() for found in _WRITES.findall(sql)})


class WatchedBus:
    """A bus in memory as one process sees it, whose publishing and acknowledging is watched. Closing it leaves the
    broker as it is: that belongs to whoever made it."""

    def __init__(self, bus: MemoryBus, watch: Watch) -> None:
        self._bus = bus
        self._watch = watch
        self.promises: Promises = bus.promises
        self._consumers: list[MemoryConsumer] = []
        self._cut = False

    def hang_up(self) -> None:
        """The process is dead: the broker hears no more of it, and gives to others what it had in hand."""
        self._cut = True
        for consumer in self._consumers:
            consumer.end()

    async def start(self) -> None:
        self._check()
        await self._bus.start()

    async def publish(self, messages: Sequence[Message]) -> None:
        self._check()
        who = serving.get()
        if not who:  # it is the test that publishes
            await self._bus.publish(messages)
            return
        kinds = ", ".join(sorted({message.type.rpartition(".")[2] for message in messages}))
        with self._watch.around(f"publish of {kinds} by {who}"):
            await self._bus.publish(messages)

    def declare(self, group: str, topics: Sequence[str]) -> None:
        self._bus.declare(group, topics)

    async def subscribe(self, group: str, topics: Sequence[str]) -> Consumer:
        self._check()
        consumer = await self._bus.subscribe(group, topics)
        self._consumers.append(consumer)
        return _WatchedConsumer(consumer, group, self._watch, self._check)

    async def ping(self) -> None:
        self._check()
        await self._bus.ping()

    async def lag(self, group: str, topics: Sequence[str]) -> Sequence[Lag]:
        return await self._bus.lag(group, topics)

    async def close(self) -> None: ...

    def _check(self) -> None:
        if self._cut:
            raise ConnectionError("the process was killed")


class WatchedSettlingBus(WatchedBus):
    """One of a bus that keeps nothing, and tells what it has settled."""

    def __init__(self, bus: MemoryBus, watch: Watch) -> None:
        super().__init__(bus, watch)
        self.on_settled = bus.on_settled


class _WatchedConsumer:
    def __init__(self, consumer: Consumer, group: str, watch: Watch, check: Callable[[], None]) -> None:
        self._consumer = consumer
        self._group = group
        self._watch = watch
        self._check = check

    async def fetch(self, most: int, wait: float) -> Sequence[Delivery]:
        self._check()
        return await self._consumer.fetch(most, wait)

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        self._check()
        kinds = ", ".join(sorted({delivery.message.type.rpartition(".")[2] for delivery in deliveries}))
        with self._watch.around(f"ack of {kinds} by {self._group}"):
            await self._consumer.ack(deliveries)

    async def release(self, deliveries: Sequence[Delivery]) -> None:
        self._check()
        await self._consumer.release(deliveries)

    async def close(self) -> None:
        await self._consumer.close()
