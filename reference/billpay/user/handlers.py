"""What the operations of the user service do.

Those that hash or hand out secrets take the database and not a transaction: no connection is held while argon2 works, a
failed attempt stays counted, and no token ends up among the stored answers of idempotency keys.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

from starlette.requests import Request
from starlette.responses import JSONResponse

from microkit.auth import Issuer, Principal
from microkit.db import Database, Transaction
from microkit.errors import NotFound, TooManyRequests, ValidationFailed
from microkit.page import Page, PageRequest
from microkit.proxies import ClientAddress
from reference.billpay.contracts.user import (
    BadCredentials,
    Credentials,
    EmailTaken,
    NewUser,
    ProfileChange,
    RefreshRequest,
    RoleChange,
    SessionEnded,
    Tokens,
    TooManyAttempts,
    User,
)
from reference.billpay.user import accounts, domain, sessions
from reference.billpay.user.attempts import Attempts, Limit, TooMany
from reference.billpay.user.passwords import Passwords
from reference.billpay.user.sessions import Lifetimes, OpenSession
from reference.billpay.user.settings import UserSettings
from reference.billpay.user.tables import AccountRow


async def register(
    body: NewUser,
    request: Request,
    client: ClientAddress,
    attempts: Attempts,
    database: Database,
    passwords: Passwords,
    settings: UserSettings,
) -> User:
    now = datetime.now(UTC)
    try:
        await attempts.count(database, Limit(f"register:{domain.network_of(client.address)}", settings.registrations))
    except TooMany as error:
        raise TooManyRequests("Too many registrations from this address", headers=_retry_after(error.wait)) from None
    password = domain.accepted_password(
        body.password.get_secret_value(), email=body.email, name=body.name, breached=passwords.breached
    )
    password_hash = await passwords.hash(password)
    key = request.headers.get("idempotency-key")
    known_by = domain.registration(key, body.email, body.name) if key else None
    try:
        account = await database.run(
            lambda tx: accounts.add(tx, body.email, body.name, password_hash, [domain.MEMBER], now, known_by)
        )
    except EmailTaken:
        # Perhaps by this very request, whose answer was lost. Who sends it again knows the password too.
        limit = Limit(f"account:{domain.email_key(body.email)}", settings.account_attempts)
        if known_by is None or not (again := await _made_by(known_by, body, limit, database, passwords, attempts)):
            raise
        return again
    return account.to_user()


async def _made_by(
    known_by: bytes, body: NewUser, limit: Limit, database: Database, passwords: Passwords, attempts: Attempts
) -> User | None:
    """Who was registered by the same request. A wrong password counts like one at log-in: this is no way around it."""
    now = datetime.now(UTC)
    account = await database.run(
        lambda tx: accounts.find_by_registration(tx, known_by, body.email, now), read_only=True
    )
    if account is None:
        return None
    try:
        async with attempts.one(database, limit) as attempt:
            if not await passwords.verify(account.password_hash, body.password.get_secret_value()):
                await attempt.failed()
                return None
            await database.run(attempt.succeeded)
    except TooMany as error:
        raise TooManyRequests("Too many attempts with this account", headers=_retry_after(error.wait)) from None
    return account.to_user()


async def log_in(
    body: Credentials,
    client: ClientAddress,
    attempts: Attempts,
    database: Database,
    passwords: Passwords,
    issuer: Issuer,
    settings: UserSettings,
) -> Tokens:
    by_account = Limit(f"account:{domain.email_key(body.email)}", settings.account_attempts)
    by_address = Limit(f"address:{domain.network_of(client.address)}", settings.address_attempts)
    typed = body.password.get_secret_value()
    try:
        async with attempts.one(database, by_account, by_address) as attempt:
            account = await database.run(lambda tx: accounts.find_by_email(tx, body.email), read_only=True)
            if not await passwords.verify(account.password_hash if account else None, typed) or account is None:
                await attempt.failed()
                raise BadCredentials
            rehashed = await _rehashed(passwords, account, typed)
            now = datetime.now(UTC)

            async def open_session(tx: Transaction) -> OpenSession:
                await attempt.succeeded(tx)
                current = await tx.get(AccountRow, account.id)
                if current is None:
                    raise BadCredentials
                current.password_hash = rehashed or current.password_hash
                return await sessions.start(tx, current, _lifetimes(settings), now)

            session = await database.run(open_session)
    except TooMany as error:
        raise TooManyAttempts(headers=_retry_after(error.wait)) from None
    await attempts.prune(database)
    return _tokens(issuer, session)


async def refresh(body: RefreshRequest, database: Database, issuer: Issuer, settings: UserSettings) -> Tokens:
    value = body.refresh_token.get_secret_value()
    now = datetime.now(UTC)
    session = await database.run(lambda tx: sessions.refresh(tx, value, _lifetimes(settings), now))
    if session is None:
        raise SessionEnded
    return _tokens(issuer, session)


async def log_out(tx: Transaction, caller: Principal) -> None:
    if caller.session:
        await sessions.end(tx, UUID(caller.session), UUID(caller.subject), datetime.now(UTC))


async def me(tx: Transaction, caller: Principal) -> User:
    return (await _own(tx, caller)).to_user()


async def change_profile(body: ProfileChange, tx: Transaction, caller: Principal) -> User:
    account = await _own(tx, caller)
    account.name = body.name
    return account.to_user()


async def list_users(page: PageRequest, tx: Transaction) -> Page[User]:
    statement = accounts.everyone()
    rows, next_cursor = await tx.page(statement, page, by=(AccountRow.created_at, AccountRow.id))
    return Page(items=[row.to_user() for row in rows], next_cursor=next_cursor)


async def assign_roles(user_id: UUID, body: RoleChange, tx: Transaction, caller: Principal) -> User:
    reserved = domain.RESERVED_ROLES.intersection(body.roles)
    if reserved:
        raise ValidationFailed(f"No account can hold the role {', '.join(sorted(reserved))}")
    return (await accounts.assign_roles(tx, user_id, body.roles, caller.subject)).to_user()


async def publish_keys(issuer: Issuer) -> JSONResponse:
    return JSONResponse(issuer.jwks(), headers={"Cache-Control": "public, max-age=300"})


async def _own(tx: Transaction, caller: Principal) -> AccountRow:
    account = await tx.get(AccountRow, UUID(caller.subject))
    if account is None:
        raise NotFound("The account is gone")
    return account


async def _rehashed(passwords: Passwords, account: AccountRow, typed: str) -> str | None:
    normal = domain.normal_form(typed)
    if normal is None or not passwords.outdated(account.password_hash):
        return None
    return await passwords.hash(normal)


def _tokens(issuer: Issuer, session: OpenSession) -> Tokens:
    account = session.account
    access = issuer.sign(str(account.id), roles=account.roles, session=str(session.id))
    return Tokens(access_token=access.value, refresh_token=session.refresh_token.value, expires_in=access.expires_in)


def _lifetimes(settings: UserSettings) -> Lifetimes:
    return Lifetimes(timedelta(seconds=settings.refresh_lifetime), timedelta(seconds=settings.session_lifetime))


def _retry_after(seconds: float) -> dict[str, str]:
    return {"Retry-After": str(int(seconds) + 1)}
