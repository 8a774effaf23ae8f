"""A request that is sent twice has its effect once, and the same reply (the ``Idempotency-Key`` header).

The key's row is written in the transaction that does the work, so both stand or neither does. A request that failed
left nothing behind, so it is not remembered: sent again with its key it is tried again.

Who comes while the first is under way waits for a moment, and most get its reply; only what takes longer is answered
with 409. In one process they all wait for the first in memory, so a thousand of them need one connection.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import orjson
from sqlalchemy import Select, and_, delete, func, insert, literal, select
from sqlalchemy.exc import IntegrityError

from microkit import context
from microkit.db import CommitUnknown, Database, Transaction, database_now
from microkit.errors import BadRequest, Conflict, ValidationFailed
from microkit.web.call import HeaderList, Reply
from microkit.web.tables import idempotency

RETENTION: Final = 24 * 3600.0
"""Seconds that a reply is kept at least, as Stripe keeps theirs."""

PATIENCE: Final = 1.0
"""Seconds that a request waits for the first one with its key, or half of its own time where that is less."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 0.2

_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}\Z")
_REPLAYED: Final = (b"idempotency-replayed", b"true")
_PRUNE_AT_ONCE: Final = 1000

Work = Callable[[Transaction], Awaitable[Reply]]
_Kept = tuple[bytes, Reply]


class MalformedIdempotencyKey(BadRequest, status=400, title="The Idempotency-Key is malformed"): ...


class IdempotencyKeyReused(ValidationFailed, status=422, title="The Idempotency-Key belongs to another request"): ...


class RequestInFlight(Conflict, status=409, title="The first request with this Idempotency-Key is still under way"): ...


class _Raced(Exception):
    """Another process wrote the key's row after this one had looked for it."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What makes two requests the same: who asks for what (``scope``), the key, and the ``fingerprint`` of the rest."""

    scope: str
    key: str
    fingerprint: bytes

    @staticmethod
    def of(operation: str, subject: str, key: str, parts: tuple[bytes, ...]) -> Identity:
        """``parts`` are what must not differ: method, path, query and body.

        Raises:
            MalformedIdempotencyKey: the key is empty, longer than 255 characters or not printable ASCII.
        """
        if len(key) > 2 and key[0] == key[-1] == '"':
            key = key[1:-1]  # the IETF draft writes a quoted string, the field a bare one
        if not _KEY.match(key):
            raise MalformedIdempotencyKey("Send 1 to 255 printable ASCII characters, such as a UUID")
        digest = hashlib.sha256()
        for part in parts:
            digest.update(b"%d:" % len(part))
            digest.update(part)
        scope = f"{operation} {subject}"
        if len(scope) > 300:
            scope = f"{operation[:200]} {hashlib.sha256(subject.encode()).hexdigest()}"
        return Identity(scope, key, digest.digest())

    @property
    def lock(self) -> int:
        """A number for PostgreSQL's advisory locks."""
        digest = hashlib.blake2b(f"{self.scope} {self.key}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, signed=True)


class Idempotency:
    """The replies that one service remembers."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._in_flight: dict[tuple[str, str], asyncio.Future[_Kept | None]] = {}

    async def once(self, identity: Identity, work: Work) -> Reply:
        """Runs ``work`` in a transaction, or returns the reply that it had before.

        Raises:
            RequestInFlight: the first one is still under way, in this process or another, after :data:`PATIENCE`.
            IdempotencyKeyReused: the key came with another request.
            CommitUnknown: the database was lost during COMMIT, twice.
        """
        name = (identity.scope, identity.key)
        left = context.remaining()
        until = time.monotonic() + (PATIENCE if left is None else min(PATIENCE, left / 2))
        while (under_way := self._in_flight.get(name)) is not None:
            await asyncio.wait((under_way,), timeout=max(0.0, until - time.monotonic()))
            if not under_way.done():
                raise _in_flight()
            kept = under_way.result()
            if kept is not None:
                return _again(identity, *kept)
        return await self._first(name, identity, work, until)

    async def _first(self, name: tuple[str, str], identity: Identity, work: Work, until: float) -> Reply:
        """The one of this process that asks the database; those that wait hear what it came to."""
        told: asyncio.Future[_Kept | None] = asyncio.get_running_loop().create_future()
        self._in_flight[name] = told
        try:
            reply = await self._asked(identity, work, until)
            told.set_result((identity.fingerprint, reply))
            return reply
        finally:
            del self._in_flight[name]
            if not told.done():
                told.set_result(None)  # nothing is remembered, so the next may try

    async def _asked(self, identity: Identity, work: Work, until: float) -> Reply:
        pause = _FIRST_PAUSE
        while True:
            try:
                return await self._tried(identity, work)
            except RequestInFlight:  # another process is at it
                if time.monotonic() + pause >= until:
                    raise
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _tried(self, identity: Identity, work: Work) -> Reply:
        try:
            return await self._database.run(lambda tx: self._unit(tx, identity, work))
        except (CommitUnknown, _Raced):
            # The row tells what became of it.
            return await self._database.run(lambda tx: self._unit(tx, identity, work))

    async def prune(self) -> int:
        """Deletes what is older than the retention, and returns how many rows that were."""
        old = select(idempotency.c.scope, idempotency.c.key).where(idempotency.c.expires_at < database_now())

        async def unit(tx: Transaction) -> int:
            rows = (await tx.execute(old.limit(_PRUNE_AT_ONCE))).all()
            for scope, key in rows:
                await tx.execute(delete(idempotency).where(_is(scope, key)))
            return len(rows)

        pruned = 0
        while (now := await self._database.run(unit)) > 0:
            pruned += now
        return pruned

    async def _unit(self, tx: Transaction, identity: Identity, work: Work) -> Reply:
        known = await _recall(tx, identity)
        if known is not None:
            return known
        reply = await work(tx)
        await tx.flush()  # so that an IntegrityError below can only be ours
        await _remember(tx, identity, reply)
        return reply


def _is(scope: str, key: str) -> Any:
    return and_(idempotency.c.scope == scope, idempotency.c.key == key)


async def _recall(tx: Transaction, identity: Identity) -> Reply | None:
    row = (await tx.execute(_look(tx.dialect, identity))).one_or_none()
    if row is None:
        return None
    if not row.free:
        raise _in_flight()
    if row.fingerprint is None:
        return None
    headers: HeaderList = [
        (name.encode("latin-1"), value.encode("latin-1")) for name, value in orjson.loads(row.headers)
    ]
    return _again(identity, row.fingerprint, Reply(row.status, headers, row.body))


def _again(identity: Identity, fingerprint: bytes, reply: Reply) -> Reply:
    """The reply that the request with this fingerprint had, for one that came later with its key."""
    if fingerprint != identity.fingerprint:
        raise IdempotencyKeyReused("Another body, path or query came with this key before: use a new key")
    headers = reply.headers if _REPLAYED in reply.headers else [*reply.headers, _REPLAYED]
    return Reply(reply.status, headers, reply.body)


def _look(dialect: str, identity: Identity) -> Select[Any]:
    c = idempotency.c
    if dialect == "sqlite":  # one writer at a time: nobody else can be under way
        free = literal(True).label("free")
        return select(free, c.fingerprint, c.status, c.headers, c.body).where(_is(identity.scope, identity.key))
    free = func.pg_try_advisory_xact_lock(identity.lock).label("free")
    one = select(literal(1).label("one")).subquery()
    return select(free, c.fingerprint, c.status, c.headers, c.body).select_from(
        one.outerjoin(idempotency, _is(identity.scope, identity.key))
    )


async def _remember(tx: Transaction, identity: Identity, reply: Reply) -> None:
    headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in reply.headers]
    row = {
        "scope": identity.scope,
        "key": identity.key,
        "fingerprint": identity.fingerprint,
        "status": reply.status,
        "headers": orjson.dumps(headers).decode(),
        "body": reply.body,
    }
    try:
        await tx.execute(insert(idempotency).values(expires_at=database_now(RETENTION), **row))
    except IntegrityError as error:
        raise _Raced from error


def _in_flight() -> RequestInFlight:
    return RequestInFlight(headers={"retry-after": "1"})
