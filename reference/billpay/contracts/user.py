"""The user service: accounts, sessions, roles."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated
from uuid import UUID

from pydantic import BaseModel, ConfigDict, EmailStr, Field, SecretStr

from microkit.contract import ANYONE, Contract, delete, get, patch, post, put
from microkit.errors import Conflict, NotFound, Problem, TooManyRequests, Unauthorized
from microkit.message import Event
from microkit.page import Page, PageRequest


class EmailTaken(Problem, status=409, title="An account with this e-mail address exists"): ...


class WeakPassword(Problem, status=422, title="The password is too weak"): ...


class BadCredentials(Problem, status=401, title="E-mail address or password is wrong"): ...


class SessionEnded(Problem, status=401, title="The session has ended: log in again"): ...


class TooManyAttempts(Problem, status=429, title="Too many failed attempts: wait before the next"): ...


class NewUser(BaseModel):
    model_config = ConfigDict(extra="forbid")

    email: EmailStr
    password: SecretStr
    name: Annotated[str, Field(min_length=1, max_length=100)]


class ProfileChange(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=100)]


class RoleChange(BaseModel):
    model_config = ConfigDict(extra="forbid")

    roles: Annotated[list[Annotated[str, Field(pattern=r"^[a-z][a-z-]{1,30}$")]], Field(max_length=10)]


class User(BaseModel):
    id: UUID
    email: str
    name: str
    roles: list[str]
    created_at: datetime


class Credentials(BaseModel):
    model_config = ConfigDict(extra="forbid")

    email: EmailStr
    password: SecretStr


class RefreshRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    refresh_token: Annotated[SecretStr, Field(max_length=200)]


class Tokens(BaseModel):
    access_token: str
    refresh_token: str
    token_type: str = "Bearer"  # noqa: S105  RFC 6750's word, no secret
    expires_in: int


class UserRegistered(Event, topic="user.users", key="user_id"):
    user_id: UUID
    email: str
    name: str


class RolesAssigned(Event, topic="user.users", key="user_id"):
    user_id: UUID
    roles: list[str]
    assigned_by: str


class Users(Contract, service="user", prefix="/users", allow="member"):
    @post("", status=201, allow=ANYONE, raises=(EmailTaken, WeakPassword, TooManyRequests))
    async def register(self, body: NewUser) -> User:
        """Open an account."""
        ...

    @get("/me", raises=(NotFound,))
    async def me(self) -> User:
        """The caller's profile."""
        ...

    @patch("/me", raises=(NotFound,))
    async def change_profile(self, body: ProfileChange) -> User:
        """Change the caller's profile."""
        ...

    @get("", allow="admin")
    async def list(self, page: PageRequest) -> Page[User]:
        """All accounts, oldest first."""
        ...

    @put("/{user_id}/roles", allow="admin", raises=(NotFound, Conflict))
    async def assign_roles(self, user_id: UUID, body: RoleChange) -> User:
        """Replace an account's roles. They are in force with its next access token."""
        ...


class Sessions(Contract, service="user", prefix="/sessions", allow="member"):
    @post("", status=201, allow=ANYONE, raises=(BadCredentials, TooManyAttempts))
    async def log_in(self, body: Credentials) -> Tokens:
        """Start a session."""
        ...

    @post("/refresh", allow=ANYONE, raises=(SessionEnded, Unauthorized))
    async def refresh(self, body: RefreshRequest) -> Tokens:
        """Trade a refresh token for new tokens. Each is good for one use; using one twice ends the session."""
        ...

    @delete("/current", status=204)
    async def log_out(self) -> None:
        """End the session that the access token belongs to."""
        ...
