"""The user service's tables."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import DateTime, ForeignKey, Index, Integer, LargeBinary, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from reference.billpay.contracts.user import User


class Base(DeclarativeBase): ...


class RoleRow(Base):
    """One role of one account."""

    __tablename__ = "account_role"

    account_id: Mapped[UUID] = mapped_column(ForeignKey("account.id", ondelete="CASCADE"), primary_key=True)
    role: Mapped[str] = mapped_column(String(31), primary_key=True, index=True)


class AccountRow(Base):
    """An account. ``email_key`` is the address as it is compared: no two accounts share one."""

    __tablename__ = "account"
    __table_args__ = (Index("account_age", "created_at", "id"),)

    id: Mapped[UUID] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(String(254))
    email_key: Mapped[str] = mapped_column(String(300), unique=True)
    name: Mapped[str] = mapped_column(String(100))
    password_hash: Mapped[str] = mapped_column(String(200))
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    registration: Mapped[bytes | None] = mapped_column(LargeBinary(32))
    """Of the request that made it, where that had an Idempotency-Key: ``domain.registration``."""
    held: Mapped[list[RoleRow]] = relationship(
        lazy="selectin", order_by=RoleRow.role, cascade="all, delete-orphan", passive_deletes=True
    )

    @property
    def roles(self) -> list[str]:
        return sorted(row.role for row in self.held)

    def to_user(self) -> User:
        return User(id=self.id, email=self.email, name=self.name, roles=self.roles, created_at=self.created_at)


class SessionRow(Base):
    """What a log-in opens, and the family that its refresh tokens belong to."""

    __tablename__ = "session"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    account_id: Mapped[UUID] = mapped_column(ForeignKey("account.id", ondelete="CASCADE"), index=True)
    started_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    expires_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), index=True)
    ended_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    ended_by: Mapped[str | None] = mapped_column(String(20))
    """``logout``, or ``reuse`` of a refresh token."""


class RefreshTokenRow(Base):
    """A refresh token: only its SHA-256 is kept, which says nothing about 256 random bits. Used ones stay as long as
    their session, so that a second use is recognised."""

    __tablename__ = "refresh_token"

    digest: Mapped[bytes] = mapped_column(LargeBinary(32), primary_key=True)
    session_id: Mapped[UUID] = mapped_column(ForeignKey("session.id", ondelete="CASCADE"), index=True)
    expires_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    used_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))


class AttemptRow(Base):
    """The attempts of one minute in one scope (an account, an address): those that failed, and those under way."""

    __tablename__ = "attempt"

    scope: Mapped[str] = mapped_column(String(400), primary_key=True)
    failures: Mapped[int] = mapped_column(Integer)
    pending: Mapped[int] = mapped_column(Integer)
    started_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), index=True)


class SigningKeyRow(Base):
    """The development key of access tokens. ``slot`` is always 1, so that there is one."""

    __tablename__ = "signing_key"

    slot: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    private_jwk: Mapped[str] = mapped_column(Text)
