"""The service's database: one pool, transactions as the unit of work, migrations; SQLite and PostgreSQL alike."""

from microkit.db.clock import database_now
from microkit.db.database import Database
from microkit.db.failure import (
    CommitUnknown,
    DatabaseUnavailable,
    PoolExhausted,
    StorageFull,
    TransactionAborted,
    is_transient,
)
from microkit.db.prepared import PreparedInsert
from microkit.db.signal import Signal
from microkit.db.transaction import Transaction

__all__ = [
    "CommitUnknown",
    "Database",
    "DatabaseUnavailable",
    "PoolExhausted",
    "PreparedInsert",
    "Signal",
    "StorageFull",
    "Transaction",
    "TransactionAborted",
    "database_now",
    "is_transient",
]
