"""What is remembered of scripts that an older version does not survive, so that one does not start."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Column, DateTime, MetaData, String, Table, Text

metadata: Final = MetaData()

contracts: Final = Table(
    "schema_contract",
    metadata,
    Column("scripts", String(32), primary_key=True, comment="the table with their revision"),
    Column("revision", String(32), primary_key=True),
    Column("needs", String(32), nullable=False, comment="the revision that a version must know to survive it"),
    Column("reason", Text, nullable=False),
    Column("applied_at", DateTime(timezone=True), nullable=False),
)
