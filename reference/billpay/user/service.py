"""The user service: its operations, and what they are made with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

from microkit import Service
from microkit.auth import Issuer
from microkit.contract import ANYONE
from microkit.db import Database
from microkit.errors import ConfigurationError
from reference.billpay.contracts.user import EmailTaken, Sessions, Users, WeakPassword
from reference.billpay.user import accounts, domain, handlers
from reference.billpay.user.attempts import Attempts
from reference.billpay.user.keys import signing_keys
from reference.billpay.user.passwords import Passwords
from reference.billpay.user.settings import UserSettings
from reference.billpay.user.tables import Base

service = Service(
    "user",
    port=3001,
    settings=UserSettings,
    tables=Base.metadata,
    migrations=Path(__file__).parent / "migrations",
    title="Users",
)

service.handles(Users.register)(handlers.register)
service.handles(Users.me)(handlers.me)
service.handles(Users.change_profile)(handlers.change_profile)
service.handles(Users.list)(handlers.list_users)
service.handles(Users.assign_roles)(handlers.assign_roles)
service.handles(Sessions.log_in)(handlers.log_in)
service.handles(Sessions.refresh)(handlers.refresh)
service.handles(Sessions.log_out)(handlers.log_out)
service.get("/.well-known/jwks.json", allow=ANYONE)(handlers.publish_keys)


@service.resource
async def passwords(settings: UserSettings, database: Database) -> AsyncIterator[Passwords]:
    hashing = Passwords()
    if settings.admin_email is not None and settings.admin_password is not None:
        await first_admin(database, hashing, settings.admin_email, settings.admin_password.get_secret_value())
    yield hashing


@service.resource
async def attempts() -> AsyncIterator[Attempts]:
    yield Attempts()


@service.resource
async def issuer(settings: UserSettings, database: Database) -> AsyncIterator[Issuer]:
    if settings.auth_issuer is None or settings.auth_audience is None:
        missing = "USER_AUTH_ISSUER" if settings.auth_issuer is None else "USER_AUTH_AUDIENCE"
        raise ConfigurationError(
            f"{missing} is missing: access tokens name their issuer and whom they are for; "
            "an example: USER_AUTH_ISSUER=https://user.example, USER_AUTH_AUDIENCE=billpay"
        )
    yield Issuer(
        settings.auth_issuer,
        audience=settings.auth_audience,
        keys=await signing_keys(settings, database),
        lifetime=settings.access_lifetime,
    )


async def first_admin(database: Database, passwords: Passwords, email: str, password: str) -> None:
    """Makes the administrator of the settings, where there is no account with that address.

    Raises:
        ConfigurationError: the password is too weak.
    """
    if await database.run(lambda tx: accounts.find_by_email(tx, email), read_only=True) is not None:
        return
    try:
        accepted = domain.accepted_password(password, email=email, name="Administrator", breached=passwords.breached)
    except WeakPassword as error:
        raise ConfigurationError(f"USER_ADMIN_PASSWORD: {error.detail}") from None
    password_hash = await passwords.hash(accepted)
    roles = [domain.ADMIN, domain.MEMBER]
    now = datetime.now(UTC)
    try:
        await database.run(lambda tx: accounts.add(tx, email, "Administrator", password_hash, roles, now))
    except EmailTaken:
        return  # another instance of this service was faster
