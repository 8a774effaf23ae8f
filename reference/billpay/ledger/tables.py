"""The ledger's state and history. Amounts are in stroops, times in seconds since 1970, as in Stellar's protocol."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, Boolean, DateTime, ForeignKey, Index, Integer, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase): ...


class AccountRow(Base):
    """An account as of the last closed ledger. Written by closing a ledger and by nothing else."""

    __tablename__ = "account"

    address: Mapped[str] = mapped_column(String(56), primary_key=True)
    balance: Mapped[int] = mapped_column(BigInteger)
    sequence: Mapped[int] = mapped_column(BigInteger)
    sequence_ledger: Mapped[int] = mapped_column(Integer, default=0)
    sequence_time: Mapped[int] = mapped_column(BigInteger, default=0)
    last_modified_ledger: Mapped[int] = mapped_column(Integer)
    last_modified_time: Mapped[int] = mapped_column(BigInteger, default=0)


class LedgerRow(Base):
    """A closed ledger. ``hash`` is the SHA-256 of its header, which holds the hash of the one before."""

    __tablename__ = "ledger"

    sequence: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    hash: Mapped[str] = mapped_column(String(64))
    previous_hash: Mapped[str] = mapped_column(String(64))
    close_time: Mapped[int] = mapped_column(BigInteger)
    fee_pool: Mapped[int] = mapped_column(BigInteger)
    succeeded: Mapped[int] = mapped_column(Integer)
    failed: Mapped[int] = mapped_column(Integer)
    operations: Mapped[int] = mapped_column(Integer)
    operations_tried: Mapped[int] = mapped_column(Integer)
    header_xdr: Mapped[str] = mapped_column(Text)


class WaitingRow(Base):
    """A valid transaction on its way into the next ledger, kept over a restart. ``number`` is its turn."""

    __tablename__ = "waiting"

    number: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    hash: Mapped[str] = mapped_column(String(64), unique=True)
    source: Mapped[str] = mapped_column(String(56), index=True)
    envelope_xdr: Mapped[str] = mapped_column(Text)
    received_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))


class TransactionRow(Base):
    """A transaction that is in a ledger, successful or not: its answer, the same for ever."""

    __tablename__ = "ledger_transaction"
    __table_args__ = (Index("ledger_transaction_place", "ledger", "place", unique=True),)

    hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    ledger: Mapped[int] = mapped_column(ForeignKey("ledger.sequence"))
    place: Mapped[int] = mapped_column(Integer)
    close_time: Mapped[int] = mapped_column(BigInteger)
    successful: Mapped[bool] = mapped_column(Boolean)
    code: Mapped[str] = mapped_column(String(40))
    operation_codes: Mapped[str] = mapped_column(Text)
    source: Mapped[str] = mapped_column(String(56), index=True)
    source_sequence: Mapped[int] = mapped_column(BigInteger)
    fee_charged: Mapped[int] = mapped_column(BigInteger)
    max_fee: Mapped[int] = mapped_column(BigInteger)
    envelope_xdr: Mapped[str] = mapped_column(Text)
    result_xdr: Mapped[str] = mapped_column(Text)
    memo_type: Mapped[str] = mapped_column(String(10))
    memo: Mapped[str | None] = mapped_column(Text)
    signatures: Mapped[str] = mapped_column(Text)
    min_time: Mapped[int] = mapped_column(BigInteger)
    max_time: Mapped[int] = mapped_column(BigInteger)

    @property
    def codes(self) -> list[str]:
        """Horizon's code of each operation."""
        return self.operation_codes.split()
