"""One unit of work: rows, events and wake-ups that happen together or not at all."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar, overload

from sqlalchemy import ColumnElement, Connection, Executable, Result, Select, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import QueryableAttribute, Session
from sqlalchemy.sql.selectable import TypedReturnsRows

from microkit.context import current, on_the_clock
from microkit.db import pagination
from microkit.db.failure import CommitUnknown, is_disconnect
from microkit.db.gathered import GatheredInsert
from microkit.db.pool import Lease
from microkit.db.prepared import PreparedInsert, PreparedSelect
from microkit.errors import DefinitionError
from microkit.message import DEADLINE, Event
from microkit.page import PageRequest
from microkit.telemetry.propagation import inject

_log = logging.getLogger(__name__)

Model = TypeVar("Model")
Value = TypeVar("Value")

Dialect = Literal["sqlite", "postgresql"]
Params = Mapping[str, Any]


class Published(NamedTuple):
    """An event, and the trace, deadline and reply headers of the work that published it: one transaction may serve
    several."""

    event: Event
    trace: Mapping[str, str]


OutboxWriter = Callable[["Transaction", Sequence[Published]], Awaitable[None]]


class LeasedSession(Session):
    """A session that takes its connection from the lease, with the first statement."""

    def __init__(self, *, lease: Lease, **options: Any) -> None:  # AsyncSession passes bind and binds along
        super().__init__(**options)
        self.lease = lease

    def get_bind(self, *_: Any, **__: Any) -> Connection:  # SQLAlchemy's hook, of many parameters
        return self.lease.connection()

    def commit(self) -> None:
        raise DefinitionError(
            "a transaction is committed when its block or handler returns, and nobody commits it by hand: others may "
            "share it. tx.flush() sends what was added or changed"
        )


class Transaction:
    """One unit of work on the service's database, from :meth:`Database.transaction` or :meth:`Database.run`.

    It is committed when its block or handler returns and rolled back when that raises; nobody commits by hand. A
    connection is taken with the first statement, not before. It belongs to one task: no ``gather`` on it.

    ``session`` is the SQLAlchemy session, for all that has no method here.
    """

    __slots__ = (
        "_after_commit",
        "_deferred",
        "_gather",
        "_lease",
        "_outbox_writer",
        "_published",
        "_wake",
        "dialect",
        "read_only",
        "session",
    )

    def __init__(
        self,
        lease: Lease,
        *,
        dialect: Dialect,
        read_only: bool,
        outbox_writer: OutboxWriter | None,
        wake: Callable[[str], None],
        gather: Callable[[GatheredInsert, Params], Awaitable[bool]],
    ) -> None:
        self.dialect: Dialect = dialect
        self.read_only = read_only
        self.session = AsyncSession(sync_session_class=LeasedSession, lease=lease, expire_on_commit=False)
        self._lease = lease
        self._outbox_writer = outbox_writer
        self._wake = wake
        self._gather = gather
        self._deferred: tuple[GatheredInsert, Params] | None = None
        self._published: list[Published] = []
        self._after_commit: list[Callable[[], None]] = []

    def add(self, row: object) -> None:
        """Inserts ``row`` at the next flush, at the latest before COMMIT."""
        self._writes("add")
        self.session.add(row)

    def add_all(self, rows: Sequence[object]) -> None:
        self._writes("add_all")
        self.session.add_all(rows)

    async def delete(self, row: object) -> None:
        self._writes("delete")
        await self.session.delete(row)

    async def get(self, model: type[Model], key: Any) -> Model | None:
        """The row with this primary key; one that is loaded already is not read again."""
        return await self.session.get(model, key)

    async def find(
        self, model: type[Model], *conditions: ColumnElement[bool], for_update: bool = False
    ) -> Model | None:
        """The one row that fits all conditions.

        ``for_update`` locks it until the end of the transaction and reads it anew. On SQLite there is one writer at a
        time anyway.

        Raises:
            sqlalchemy.exc.MultipleResultsFound: more than one row fits.
        """
        statement = select(model).where(*conditions)
        if for_update:
            self._writes("find(for_update=True)")
            statement = statement.with_for_update().execution_options(populate_existing=True)
        return (await self.session.scalars(statement)).one_or_none()

    @overload
    async def scalars(self, statement: TypedReturnsRows[Value]) -> Sequence[Value]: ...

    @overload
    async def scalars(self, statement: Executable, params: Params | None = None) -> Sequence[Any]: ...

    async def scalars(self, statement: Executable, params: Params | None = None) -> Sequence[Any]:
        """The first column of all rows."""
        return (await self.session.scalars(statement, params)).all()

    @overload
    async def scalar(self, statement: TypedReturnsRows[Value]) -> Value | None: ...

    @overload
    async def scalar(self, statement: Executable, params: Params | None = None) -> Any: ...

    async def scalar(self, statement: Executable, params: Params | None = None) -> Any:
        """The first column of the first row, ``None`` where there is no row."""
        return await self.session.scalar(statement, params)

    async def execute(
        self, statement: Executable, params: Params | Sequence[Params] | None = None
    ) -> Result[*tuple[Any, ...]]:
        """Any statement; a list of ``params`` inserts many rows at once."""
        return await self.session.execute(statement, params)

    async def insert(self, statement: PreparedInsert, rows: Sequence[Mapping[str, Any]]) -> None:
        """Flushes, then inserts the rows in their order, at least cost; for what nearly every request does."""
        self._writes("insert")
        await self.session.run_sync(self._flush_and_insert, statement, rows)

    async def fetch(self, statement: PreparedSelect, values: Params) -> Sequence[Any]:
        """The rows as the driver gives them, at least cost; for a loop that reads thousands. It flushes nothing."""
        return await self.session.run_sync(lambda session: statement.fetch(session.connection(), values))

    async def fetch_alone(self, statement: PreparedSelect, values: Params) -> Sequence[Any]:
        """As :meth:`fetch`, by who has nothing else to do in this transaction: PostgreSQL gets it in one trip, and has
        committed it when this returns. Where something was done before, it is one statement of the others.

        Raises:
            CommitUnknown: the connection was lost meanwhile.
        """
        if not self._is_untouched:
            return await self.fetch(statement, values)
        try:
            return await self.session.run_sync(self._fetch_alone, statement, values)
        except Exception as error:
            if self.dialect == "postgresql" and is_disconnect(error):
                raise CommitUnknown from error
            raise

    async def insert_once(self, statement: GatheredInsert, row: Params) -> None:
        """Inserts the row before the next statement, or with others' where it stays the only one: on PostgreSQL. What
        is wrong with it comes then."""
        self._writes("insert_once")
        if self._is_untouched and self.dialect == "postgresql":
            self._deferred = statement, row
            self._lease.first = self._send_deferred
        else:
            await self.insert(statement.one, [row])

    async def flush(self) -> None:
        """Sends what was added or changed now, so that its errors come here and not at COMMIT.

        Raises:
            sqlalchemy.exc.IntegrityError: a constraint refuses a row.
        """
        await self.session.flush()

    async def page(
        self,
        statement: Select[Value],
        request: PageRequest,
        *,
        by: Sequence[QueryableAttribute[Any]],
        descending: bool = False,
    ) -> tuple[list[Value], str | None]:
        """One page of a ``select`` of one entity, and the cursor of the next page, ``None`` on the last.

        ``by`` are the columns to sort by, none of them nullable, together unique: end with the primary key. The page is
        found by comparing with the last row of the page before (keyset pagination), so an index over ``by`` answers it
        however deep it is.

        Raises:
            BadRequest: the cursor is not one of ours.
        """
        return await pagination.page(self.session, statement, request, by=by, descending=descending)

    def publish(self, *events: Event) -> None:
        """Writes the events into the outbox with this transaction: they are delivered if it commits, never if not."""
        self._writes("publish")
        if self._outbox_writer is None:
            raise DefinitionError("publish() needs the outbox: the database of this service was made without one")
        trace = inject()
        work = current()
        if work.deadline is not None:
            trace[DEADLINE] = str(on_the_clock(work.deadline))
        if work.event_headers is not None:
            trace.update(work.event_headers)
        self._published += [Published(event, trace) for event in events]

    def after_commit(self, callback: Callable[[], None]) -> None:
        """Calls ``callback`` once COMMIT is confirmed. What must not be lost belongs in a table instead.

        What it raises is logged: the transaction stands, and its caller must not believe otherwise.
        """
        self._after_commit.append(callback)

    def wake(self, signal: str) -> None:
        """Sets ``Database.signal(signal)`` once COMMIT is confirmed."""
        self.after_commit(lambda: self._wake(signal))

    def _writes(self, what: str) -> None:
        if self.read_only:
            raise DefinitionError(
                f"{what}() in a read-only transaction. Safe HTTP methods (GET, HEAD) get one; "
                "write in an operation with another method, or use database.run() without read_only"
            )

    # What follows is for Database alone.

    async def prepare(self) -> None:
        """Sends everything but COMMIT."""
        if self._is_only_deferred:
            return
        if self.dialect == "postgresql":
            self._lease.hold()
        await self.session.flush()
        if self._published and self._outbox_writer is not None:
            published, self._published = self._published, []
            await self._outbox_writer(self, published)

    async def commit(self) -> None:
        """Sends COMMIT and gives the connection back.

        Raises:
            CommitUnknown: the connection was lost meanwhile.
        """
        try:
            if not (self._is_only_deferred and await self._gathered()):
                await self.session.run_sync(self._commit)
        except Exception as error:
            if not is_disconnect(error):
                raise
            if not self.read_only:
                raise CommitUnknown from error
        for callback in self._after_commit:
            try:
                callback()
            except Exception:  # noqa: BLE001  whatever it is, the transaction stands
                _log.exception("a callback after COMMIT failed; the transaction stands")

    @property
    def _is_untouched(self) -> bool:
        return self._deferred is None and not self._published and self._is_unused

    @property
    def _is_only_deferred(self) -> bool:
        return self._deferred is not None and not self._published and self._is_unused

    @property
    def _is_unused(self) -> bool:
        session = self.session.sync_session
        return self._lease.unused and not (session.new or session.deleted or session.dirty)

    async def _gathered(self) -> bool:
        """Whether the only row was inserted with others'. If not, it is ready to be sent alone."""
        assert self._deferred is not None  # noqa: S101  asked before
        if await self._gather(*self._deferred):
            self._lease.close()
            return True
        self._lease.hold()
        await self.session.run_sync(lambda session: session.connection())
        return False

    def _send_deferred(self, connection: Connection) -> None:
        deferred, self._deferred = self._deferred, None
        if deferred is not None:
            insert, row = deferred
            insert.one.send_first(connection, row, self._lease.held)

    def _fetch_alone(self, session: Session, statement: PreparedSelect, values: Params) -> Sequence[Any]:
        session.connection()
        return self._lease.fetch_alone(statement, values)

    def _commit(self, session: Session) -> None:
        try:
            self._lease.send_held()
            Session.commit(session)  # which nobody else may
        finally:
            self._close(session)

    def _flush_and_insert(self, session: Session, statement: PreparedInsert, rows: Sequence[Mapping[str, Any]]) -> None:
        session.flush()
        statement.send(session.connection(), rows, self._lease.held)

    async def rollback(self) -> None:
        await self.session.run_sync(self._close)

    def _close(self, session: Session) -> None:
        try:
            session.close()
        finally:
            self._lease.close()
