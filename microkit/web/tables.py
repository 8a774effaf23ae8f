"""The table that idempotency keys are kept in, in the service's own database."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Column, DateTime, Index, Integer, LargeBinary, MetaData, String, Table, Text

metadata: Final = MetaData()

idempotency: Final = Table(
    "idempotency",
    metadata,
    # The caller and the operation: the same key of another caller is another key.
    Column("scope", String(300), primary_key=True),
    Column("key", String(255), primary_key=True),
    # SHA-256 over method, path, query and body: tells a repetition from another request.
    Column("fingerprint", LargeBinary(32), nullable=False),
    Column("status", Integer, nullable=False),
    # The answer's own headers as a JSON object.
    Column("headers", Text, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("expires_at", DateTime(timezone=True), nullable=False),
    Index("ix_idempotency_expires_at", "expires_at"),
)
