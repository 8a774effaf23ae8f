"""The user service as it runs, and calls to it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from argon2 import PasswordHasher
from pydantic import SecretStr
from sqlalchemy import update

from microkit.auth import Principal, Verifier
from microkit.context import WorkContext, working
from microkit.db import Database, Transaction
from microkit.instance import Instance
from reference.billpay.contracts.user import Credentials, NewUser, Sessions, Tokens, User, Users
from reference.billpay.user.passwords import Passwords

PASSWORD = "copper lantern 47 reed"


def quick_passwords() -> Passwords:
    """Hashes as the service does, but weakly: these tests are about something else."""
    return Passwords(PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))


@dataclass
class UserService:
    """The running service, and calls to it."""

    instance: Instance
    users: Users
    sessions: Sessions

    @property
    def database(self) -> Database:
        return self.instance.database

    @property
    def verifier(self) -> Verifier:
        assert self.instance.parts.verifier is not None
        return self.instance.parts.verifier

    async def register(self, email: str = "ada@billpay.example", password: str = PASSWORD, name: str = "Ada") -> User:
        return await self.users.register(NewUser(email=email, password=SecretStr(password), name=name))

    async def log_in(self, email: str = "ada@billpay.example", password: str = PASSWORD) -> Tokens:
        return await self.sessions.log_in(Credentials(email=email, password=SecretStr(password)))

    async def principal(self, tokens: Tokens) -> Principal:
        return await self.verifier.verify(tokens.access_token)


@contextlib.contextmanager
def bearing(tokens: Tokens | None) -> Iterator[None]:
    """Calls inside the block carry this access token."""
    with working(WorkContext(bearer=tokens.access_token if tokens else None)):
        yield


Start = Callable[..., contextlib.AbstractAsyncContextManager[UserService]]


async def set_back(user: UserService, table: type, **columns: timedelta) -> None:
    """Makes it as if the time in these columns had passed by so much more."""
    now = datetime.now(UTC)

    async def write(tx: Transaction) -> None:
        await tx.execute(update(table).values({name: now - by for name, by in columns.items()}))

    await user.database.run(write)
