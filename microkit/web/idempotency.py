"""A request that is sent twice has its effect once, and the same reply (the ``Idempotency-Key`` header).

The key's row is written in the transaction that does the work, so both stand or neither does. A request that failed
left nothing behind, so it is not remembered: sent again with its key it is tried again.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import orjson
from sqlalchemy import Select, and_, delete, func, insert, literal, select
from sqlalchemy.exc import IntegrityError

from microkit.db import CommitUnknown, Database, Transaction, database_now
from microkit.errors import BadRequest, Conflict, ValidationFailed
from microkit.web.call import HeaderList, Reply
from microkit.web.tables import idempotency

RETENTION: Final = 24 * 3600.0
"""Seconds that a reply is kept at least, as Stripe keeps theirs."""

_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}\Z")
_REPLAYED: Final = (b"idempotency-replayed", b"true")
_PRUNE_AT_ONCE: Final = 1000

Work = Callable[[Transaction], Awaitable[Reply]]


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
        self._in_flight: set[tuple[str, str]] = set()

    async def once(self, identity: Identity, work: Work) -> Reply:
        """Runs ``work`` in a transaction, or returns the reply that it had before.

        Raises:
            RequestInFlight: the first one is still under way, in this process or another.
            IdempotencyKeyReused: the key came with another request.
            CommitUnknown: the database was lost during COMMIT, twice.
        """
        name = (identity.scope, identity.key)
        if name in self._in_flight:
            raise _in_flight()
        self._in_flight.add(name)
        try:
            try:
                return await self._database.run(lambda tx: self._unit(tx, identity, work))
            except (CommitUnknown, _Raced):
                # The row tells what became of it.
                return await self._database.run(lambda tx: self._unit(tx, identity, work))
        finally:
            self._in_flight.discard(name)

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
    if row.fingerprint != identity.fingerprint:
        raise IdempotencyKeyReused("Another body, path or query came with this key before: use a new key")
    headers: HeaderList = [
        (name.encode("latin-1"), value.encode("latin-1")) for name, value in orjson.loads(row.headers)
    ]
    return Reply(row.status, [*headers, _REPLAYED], row.body)


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
