"""How a service's connections are kept, beyond how many there are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """Seconds, and what stands between us and the server; the fields of :class:`~microkit.settings.ServiceSettings`
    of the same names, with ``database_`` before them. Only ``leak_after`` means something to SQLite."""

    recycle: float = 1800.0
    """A connection older than this is opened anew when it is next wanted; 0 keeps it for good."""
    pre_ping: bool = False
    """Ask each connection for an answer before it is lent: a round trip for every transaction. Without it, one whose
    end this process was told of is replaced, and one that died in silence costs a retry."""
    pgbouncer: bool = False
    """A pooler that lends server connections by the transaction stands before the server: no pool of our own, no
    prepared statement, no setting of a session, and nothing heard from other processes."""
    replica_url: str | None = None
    """A copy that may be read from, in transactions that allow it."""
    leak_after: float = 60.0
    """Held longer than this, a connection's holder is logged with its stack; 0 never."""


DEFAULT: Final = PoolOptions()
