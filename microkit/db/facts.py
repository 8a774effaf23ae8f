"""What the database's server is, and whether all the connections that a service may open fit into it."""

from __future__ import annotations

import sqlite3
import time
from dataclasses import dataclass
from typing import Final

from sqlalchemy import text

from microkit.db.database import Database

OLDEST_POSTGRESQL: Final = 14
OLDEST_SQLITE: Final = (3, 35)
"""RETURNING came with it."""

_ASKED: Final = text(
    "SELECT current_setting('server_version') AS version, current_setting('server_version_num')::int AS number,"
    " current_setting('max_connections')::int AS most,"
    " current_setting('superuser_reserved_connections')::int"
    " + coalesce(current_setting('reserved_connections', true)::int, 0) AS reserved,"
    " extract(epoch FROM clock_timestamp())::float8 AS clock, pg_is_in_recovery() AS standby"
)


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """``number`` is the version for comparing (``170002``, ``3045001``). ``connections`` is how many all its users may
    open, ``None`` without limit. ``clock`` is by how many seconds its clock is ahead of ours, give or take ``trip``."""

    dialect: str
    version: str
    number: int
    connections: int | None
    clock: float
    trip: float
    standby: bool

    @property
    def trouble(self) -> str | None:
        """Why this server will not do, in one sentence."""
        if self.dialect == "postgresql":
            if self.number // 10_000 < OLDEST_POSTGRESQL:
                return (
                    f"the server is PostgreSQL {self.version}, and microkit needs {OLDEST_POSTGRESQL} or later: "
                    "upgrade it, or name another server"
                )
            if self.standby:
                return "the server is a standby, which takes no writes: name the primary"
        elif self.number < OLDEST_SQLITE[0] * 1_000_000 + OLDEST_SQLITE[1] * 1000:
            return (
                f"Python's SQLite is {self.version}, and microkit needs {OLDEST_SQLITE[0]}.{OLDEST_SQLITE[1]} or later:"
                " use a Python that was built with a newer one"
            )
        return None


@dataclass(frozen=True, slots=True)
class Share:
    """What the processes of a service may open: ``pool`` and ``overflow`` each, and what each keeps beside them. There
    are ``workers`` processes in each of its ``replicas``."""

    pool: int
    overflow: int
    replicas: int = 1
    workers: int = 1
    beside: int = 1
    """The connection on which a process hears the others."""
    pooled: bool = False
    """A pooler stands before the server, and its own settings say how many connections it opens."""

    @property
    def connections(self) -> int:
        return self.replicas * self.workers * (self.pool + self.overflow + self.beside)

    def misfit(self, most: int | None) -> str | None:
        """In one sentence, how that does not fit into ``most``; ``None`` where it does."""
        if most is None or self.pooled or self.connections <= most:
            return None
        fitting = most // (self.replicas * self.workers) - self.beside
        remedy = (
            f"let pool and overflow be {fitting} together"
            if fitting >= 1
            else "put a pooler such as pgbouncer before it (database_pgbouncer)"
        )
        listening = f" + {self.beside} to listen" if self.beside else ""
        processes = (
            f"{self.replicas} replicas * {self.workers} workers" if self.workers > 1 else f"{self.replicas} processes"
        )
        return (
            f"{processes} * ({self.pool} pool + {self.overflow} overflow{listening}) may open "
            f"{self.connections} connections, and the server allows {most}: {remedy}, or give it a higher "
            "max_connections"
        )


async def server_facts(database: Database) -> ServerFacts:
    """Asks the server, in one trip.

    Raises:
        DatabaseUnavailable: it does not answer.
    """
    if database.dialect == "sqlite":
        number = sqlite3.sqlite_version_info
        return ServerFacts(
            "sqlite", sqlite3.sqlite_version, number[0] * 1_000_000 + number[1] * 1000 + number[2], None, 0, 0, False
        )
    async with database.transaction(read_only=True) as tx:
        await tx.execute(text("SELECT 1"))  # so that connecting is no part of the trip
        began, steady = time.time(), time.monotonic()
        row = (await tx.execute(_ASKED)).one()
        trip = time.monotonic() - steady
    ahead = row.clock - (began + trip / 2)
    return ServerFacts("postgresql", row.version, row.number, row.most - row.reserved, ahead, trip / 2, row.standby)
