"""The inbox: a message's effect happens once, because the mark that it happened is in the same transaction."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from microkit.db.clock import database_now
from microkit.db.database import Database
from microkit.db.transaction import Transaction
from microkit.errors import DefinitionError, UndecodableMessage
from microkit.message import Message
from microkit.outbox.tables import inbox

_LONGEST_NAME: Final = 255
_INSERTS: Final = {
    "postgresql": postgresql.insert(inbox).values(received_at=database_now()).on_conflict_do_nothing(),
    "sqlite": sqlite.insert(inbox).values(received_at=database_now()).on_conflict_do_nothing(),
}
_ROWS: Final = (
    sa.func.unnest(
        sa.bindparam("sources", type_=postgresql.ARRAY(sa.Text)),
        sa.bindparam("ids", type_=postgresql.ARRAY(sa.Text)),
        sa.bindparam("digests", type_=postgresql.ARRAY(sa.LargeBinary)),
    )
    .table_valued("source", "id", "digest")
    .render_derived()
)
# One text however many rows there are, so that it is prepared once.
_INSERT_MANY: Final = (
    postgresql.insert(inbox)
    .from_select(
        ["consumer", "source", "id", "digest", "received_at"],
        sa.select(sa.bindparam("consumer", type_=sa.Text), _ROWS.c.source, _ROWS.c.id, _ROWS.c.digest, database_now()),
    )
    .on_conflict_do_nothing()
    .returning(inbox.c.source, inbox.c.id)
)
_INSERT_EACH: Final = _INSERTS["sqlite"].returning(inbox.c.source, inbox.c.id)
_KNOWN: Final = sa.select(inbox.c.digest).where(
    inbox.c.consumer == sa.bindparam("consumer"),
    inbox.c.source == sa.bindparam("source"),
    inbox.c.id == sa.bindparam("id"),
)
_KNOWN_MANY: Final = sa.select(inbox.c.source, inbox.c.id, inbox.c.digest).where(
    inbox.c.consumer == sa.bindparam("consumer"),
    sa.tuple_(inbox.c.source, inbox.c.id).in_(sa.bindparam("names", expanding=True)),
)


async def effect_once(
    database: Database, group: str, message: Message, work: Callable[[Transaction], Awaitable[None]]
) -> bool:
    """Does ``work`` in one transaction with the inbox row of ``message``; ``False`` when its effect was there already.

    A copy that arrives while another is being worked on waits for it. ``work`` may be called again after a failed
    transaction, as :meth:`Database.run` says.

    Raises:
        UndecodableMessage: the message has no id (``no-id``), none that can be kept (``bad-id``), or the id of another
            message (``id-reused``).
        DefinitionError: ``work`` rolled the transaction back by hand.
    """
    name = _name(group, message)
    digest = _digest(message)

    async def unit(tx: Transaction) -> bool:
        inserted = await tx.execute(_INSERTS[tx.dialect], [{**name, "digest": digest}])
        if inserted.rowcount:  # type: ignore[attr-defined]  # an INSERT's result is a CursorResult
            with _unbroken(tx):
                await work(tx)
            return True
        known = (await tx.execute(_KNOWN, name)).scalar_one_or_none()
        if known is not None and known != digest:
            raise _reused(message.id)
        return False

    return await database.run(unit)


@contextmanager
def _unbroken(tx: Transaction) -> Iterator[None]:
    """Sees to it that what follows is committed with the marks, or not at all: a rollback by hand takes the marks away,
    and the effects of others in the same transaction, and what comes after it would be committed alone."""
    begun = tx.session.sync_session.get_transaction()
    yield
    if tx.session.sync_session.get_transaction() is not begun:
        raise DefinitionError(
            "the handler rolled its transaction back by hand, and with it the mark that the message was handled. Raise "
            "instead (ignore= names errors that mean there was nothing to do), or put what may fail into "
            "`async with tx.session.begin_nested()`"
        )


async def effects_once(
    database: Database,
    group: str,
    messages: Sequence[Message],
    work: Callable[[Transaction, Sequence[Message]], Awaitable[None]],
) -> int:
    """Does ``work`` in one transaction with the inbox rows of all ``messages``; for how many it was.

    ``work`` is given those whose effect is not there yet, in their order, each once; it is not called when there are
    none. Everything happens or nothing, and nothing is tried again: that is for :func:`effect_once`, one by one.

    Raises:
        UndecodableMessage: one of them has no id, none that can be kept, or the id of another message.
        DefinitionError: ``work`` rolled the transaction back by hand.
    """
    named = [(_name(group, message), message) for message in messages]
    digests: dict[tuple[str, str], bytes] = {}
    for name, message in named:
        digest = _digest(message)
        if digests.setdefault((name["source"], name["id"]), digest) != digest:
            raise _reused(message.id)
    rows = sorted(digests.items())  # in one order everywhere, so that two transactions never wait for each other

    async def unit(tx: Transaction) -> int:
        fresh = await _insert(tx, group, rows)
        if old := digests.keys() - fresh:
            for source, each, known in await tx.execute(_KNOWN_MANY, {"consumer": group, "names": list(old)}):
                if known != digests[source, each]:
                    raise _reused(each)
        todo = []
        for name, message in named:
            key = (name["source"], name["id"])
            if key in fresh:
                fresh.discard(key)  # a second copy of it has nothing left to do
                todo.append(message)
        if todo:
            with _unbroken(tx):
                await work(tx, todo)
        return len(todo)

    return await database.run(unit, attempts=1)


async def _insert(tx: Transaction, group: str, rows: Sequence[tuple[tuple[str, str], bytes]]) -> set[tuple[str, str]]:
    """Marks these as handled; those that were not before."""
    if tx.dialect == "postgresql":
        columns = {
            "consumer": group,
            "sources": [source for (source, _), _ in rows],
            "ids": [each for (_, each), _ in rows],
            "digests": [digest for _, digest in rows],
        }
        found = await tx.execute(_INSERT_MANY, columns)
    else:
        each = [{"consumer": group, "source": name[0], "id": name[1], "digest": digest} for name, digest in rows]
        found = await tx.execute(_INSERT_EACH, each)
    return {(source, each) for source, each in found}


def _reused(message_id: str) -> UndecodableMessage:
    return UndecodableMessage("id-reused", f"{message_id} came before, with another type or payload")


async def prune(database: Database, *, older_than: float, most: int = 1000) -> int:
    """Forgets up to ``most`` messages received more than ``older_than`` seconds ago; how many there were.

    Older copies than that would have their effect again, so stay well above the time that a bus keeps a message.
    """
    name = (inbox.c.consumer, inbox.c.source, inbox.c.id)
    old = (
        sa.select(*name)
        .where(inbox.c.received_at < database_now(plus=-older_than))
        .order_by(inbox.c.received_at)
        .limit(most)
    )

    async def unit(tx: Transaction) -> int:
        gone = await tx.execute(sa.delete(inbox).where(sa.tuple_(*name).in_(old)))
        return int(gone.rowcount)  # type: ignore[attr-defined]  # a DELETE's result is a CursorResult

    return await database.run(unit)


def _name(group: str, message: Message) -> dict[str, str]:
    source = message.headers.get("ce_source", "")
    if not message.id:
        raise UndecodableMessage("no-id", "the message has no ce_id header")
    for text in (message.id, source):
        if len(text) > _LONGEST_NAME or not text.isprintable():
            raise UndecodableMessage("bad-id", "ce_id and ce_source are at most 255 printable characters")
    return {"consumer": group, "source": source, "id": message.id}


def _digest(message: Message) -> bytes:
    return blake2b(message.type.encode("utf-8", "surrogatepass") + b"\0" + message.value, digest_size=16).digest()
