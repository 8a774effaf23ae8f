"""Billing's tables. Amounts are in stroops, because SQLite has no decimals."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import BigInteger, DateTime, Index, Integer, String, Uuid
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase): ...


class BillRow(Base):
    __tablename__ = "bill"
    __table_args__ = (Index("bill_of_owner", "owner", "created_at", "id"),)

    id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    owner: Mapped[str] = mapped_column(String(100))
    provider: Mapped[str] = mapped_column(String(100))
    reference: Mapped[str] = mapped_column(String(60))
    amount: Mapped[int] = mapped_column(BigInteger)
    payee: Mapped[str] = mapped_column(String(56))
    due_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    status: Mapped[str] = mapped_column(String(12))
    payment_id: Mapped[UUID | None] = mapped_column(Uuid)
    discount: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    coupon: Mapped[str | None] = mapped_column(String(20))
    refund_id: Mapped[UUID | None] = mapped_column(Uuid)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))


class ReleasedRow(Base):
    """A payment that has given its bill back, or a refund that has. A reservation by it that comes late, on a slow way,
    is refused."""

    __tablename__ = "released"

    payment_id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    bill_id: Mapped[UUID] = mapped_column(Uuid)
    released_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))


class CouponRow(Base):
    """``payment_id`` is the payment that holds or has redeemed it. It is unique: a payment takes one coupon."""

    __tablename__ = "coupon"

    code: Mapped[str] = mapped_column(String(20), primary_key=True)
    percent: Mapped[int] = mapped_column(Integer)
    owner: Mapped[str | None] = mapped_column(String(100))
    status: Mapped[str] = mapped_column(String(12))
    payment_id: Mapped[UUID | None] = mapped_column(Uuid, unique=True)
    expires_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))


class ReturnedRow(Base):
    """A payment that has given its coupon back. A reservation by it that comes late is refused."""

    __tablename__ = "returned"

    payment_id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    code: Mapped[str] = mapped_column(String(20))
    returned_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))


class ReconciliationRow(Base):
    """A settled payment, compared with its bill when its event came."""

    __tablename__ = "reconciliation"

    payment_id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    bill_id: Mapped[UUID] = mapped_column(Uuid, index=True)
    owner: Mapped[str] = mapped_column(String(100))
    verdict: Mapped[str] = mapped_column(String(20))
    paid: Mapped[int] = mapped_column(BigInteger)
    billed: Mapped[int | None] = mapped_column(BigInteger)
    transaction_hash: Mapped[str] = mapped_column(String(64))
    ledger: Mapped[int] = mapped_column(Integer)
    reconciled_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
