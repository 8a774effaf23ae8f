"""Sessions and their refresh tokens: rotated at each use; a second use ends the session (RFC 9700, 4.14.2)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID, uuid4

from sqlalchemy import delete, select, update

from microkit.db import Transaction
from reference.billpay.user.domain import RefreshToken
from reference.billpay.user.tables import AccountRow, RefreshTokenRow, SessionRow


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """Of a refresh token that nobody uses, and of a session however much it is used."""

    refresh: timedelta
    session: timedelta


@dataclass(frozen=True, slots=True)
class OpenSession:
    """A session with the refresh token that continues it next."""

    id: UUID
    account: AccountRow
    refresh_token: RefreshToken


async def start(tx: Transaction, account: AccountRow, lifetimes: Lifetimes, now: datetime) -> OpenSession:
    """Opens a session, and clears away those of the account that have expired."""
    await tx.execute(delete(SessionRow).where(SessionRow.account_id == account.id, SessionRow.expires_at <= now))
    session = SessionRow(
        id=uuid4(), account_id=account.id, started_at=now, expires_at=now + lifetimes.session, ended_at=None
    )
    tx.add(session)
    await tx.flush()  # the row that the refresh token refers to
    return OpenSession(session.id, account, _issue(tx, session, lifetimes, now))


async def refresh(tx: Transaction, value: str, lifetimes: Lifetimes, now: datetime) -> OpenSession | None:
    """Trades a refresh token for the next one. ``None`` where it is void.

    Its use is one conditional UPDATE, so of any number that come at once exactly one succeeds. The others are reuse:
    they end the session, whoever was first, since a stolen token cannot be told from a repeated one. The caller must
    commit then, not roll back.
    """
    token = RefreshToken.of(value)
    used = await tx.execute(
        update(RefreshTokenRow)
        .where(RefreshTokenRow.digest == token.digest, RefreshTokenRow.used_at.is_(None))
        .values(used_at=now)
        .returning(RefreshTokenRow.session_id, RefreshTokenRow.expires_at)
    )
    row = used.one_or_none()
    if row is None:
        await _end_where_reused(tx, token, now)
        return None
    session_id, expires_at = row
    session = await tx.find(SessionRow, SessionRow.id == session_id, for_update=True)
    if session is None or session.ended_at is not None or min(session.expires_at, expires_at) <= now:
        return None
    account = await tx.get(AccountRow, session.account_id)
    if account is None:
        return None
    return OpenSession(session.id, account, _issue(tx, session, lifetimes, now))


async def end(tx: Transaction, session_id: UUID, account_id: UUID, now: datetime) -> None:
    """Ends a session of this account; one that has ended, or another's, is left as it is."""
    await tx.execute(
        update(SessionRow)
        .where(SessionRow.id == session_id, SessionRow.account_id == account_id, SessionRow.ended_at.is_(None))
        .values(ended_at=now, ended_by="logout")
    )


async def _end_where_reused(tx: Transaction, token: RefreshToken, now: datetime) -> None:
    family = select(RefreshTokenRow.session_id).where(RefreshTokenRow.digest == token.digest).scalar_subquery()
    await tx.execute(
        update(SessionRow)
        .where(SessionRow.id == family, SessionRow.ended_at.is_(None))
        .values(ended_at=now, ended_by="reuse")
    )


def _issue(tx: Transaction, session: SessionRow, lifetimes: Lifetimes, now: datetime) -> RefreshToken:
    token = RefreshToken.new()
    expires_at = min(now + lifetimes.refresh, session.expires_at)
    tx.add(RefreshTokenRow(digest=token.digest, session_id=session.id, expires_at=expires_at, used_at=None))
    return token
