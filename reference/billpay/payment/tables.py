"""Payment's tables. Amounts are in stroops, because SQLite has no decimals."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import BigInteger, DateTime, ForeignKey, Index, Integer, LargeBinary, String, Text, Uuid, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

_OPEN = text("state = 'open'")
_MAY_BE_MADE = text("refund_of IS NOT NULL AND status <> 'failed'")
_MAY_BE_PAID = text("state IN ('open', 'applied')")


class Base(DeclarativeBase): ...


class WalletRow(Base):
    """Somebody's account on the network, and what signs for it, sealed."""

    __tablename__ = "wallet"

    owner: Mapped[str] = mapped_column(String(100), primary_key=True)
    address: Mapped[str] = mapped_column(String(56), unique=True)
    sealed_seed: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))


class PaymentRow(Base):
    """A payment; or a refund, which is a payment out of billpay's own wallet of the payment ``refund_of``, for a
    ``cause``. The partial index holds the promise that a payment is paid back once."""

    __tablename__ = "payment"
    __table_args__ = (
        Index("payment_of_owner", "owner", "created_at", "id"),
        Index("refund_of_payment", "refund_of", unique=True, sqlite_where=_MAY_BE_MADE, postgresql_where=_MAY_BE_MADE),
    )

    id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    owner: Mapped[str] = mapped_column(String(100))
    bill_id: Mapped[UUID] = mapped_column(Uuid)
    coupon: Mapped[str | None] = mapped_column(String(20))
    refund_of: Mapped[UUID | None] = mapped_column(Uuid)
    cause: Mapped[str | None] = mapped_column(Text)
    amount: Mapped[int | None] = mapped_column(BigInteger)
    status: Mapped[str] = mapped_column(String(12))
    reason: Mapped[str | None] = mapped_column(Text)
    transaction_hash: Mapped[str | None] = mapped_column(String(64))
    ledger: Mapped[int | None] = mapped_column(Integer)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    updated_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))


class EnvelopeRow(Base):
    """A signed envelope, kept before it is sent, so that the very same bytes can be sent again.

    The two partial indexes hold the promises: a wallet has one transaction under way, because the next sequence number
    depends on it; and a payment has one that may be, or has been, applied, so that nothing is paid twice.
    """

    __tablename__ = "envelope"
    __table_args__ = (
        Index("envelope_under_way", "address", unique=True, sqlite_where=_OPEN, postgresql_where=_OPEN),
        Index(
            "envelope_of_payment",
            "payment_id",
            unique=True,
            sqlite_where=_MAY_BE_PAID,
            postgresql_where=_MAY_BE_PAID,
        ),
    )

    hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    payment_id: Mapped[UUID] = mapped_column(ForeignKey("payment.id"))
    address: Mapped[str] = mapped_column(String(56))
    sequence: Mapped[int] = mapped_column(BigInteger)
    max_time: Mapped[int] = mapped_column(BigInteger)
    xdr: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(String(10))
    attempts: Mapped[int] = mapped_column(Integer)
    ledger: Mapped[int | None] = mapped_column(Integer)
    result: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
