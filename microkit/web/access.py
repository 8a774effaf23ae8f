"""Who may call: the bearer token, verified, against what the route allows."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from microkit.auth.principal import ANONYMOUS, Principal
from microkit.contract import ANYONE, SIGNED_IN, services_only
from microkit.errors import Forbidden, Unauthorized

Verify = Callable[[str], Awaitable[Principal]]

_CHALLENGE: Final = {"www-authenticate": "Bearer"}


class Access:
    """Turns tokens into callers. Without ``verify`` no token can be verified, so only what anyone may call is open."""

    def __init__(self, verify: Verify | None) -> None:
        self._verify = verify

    async def admit_for(self, allow: tuple[str, ...], token: str | None) -> Principal:
        """As :meth:`admit`, but looks at no token where anyone may call: whoever is behind it decides."""
        return ANONYMOUS if ANYONE in allow else await self.admit(token, allow)

    async def admit(self, token: str | None, allow: tuple[str, ...]) -> Principal:
        """The caller, who may do this.

        Raises:
            Unauthorized: no valid token, and one is needed; or a token that is not valid.
            Forbidden: a valid one, whose caller has none of the roles.
        """
        if token is None:
            if ANYONE in allow:
                return ANONYMOUS
            raise Unauthorized("Send an access token: Authorization: Bearer …", headers=_CHALLENGE)
        if self._verify is None:
            raise Unauthorized("This service knows no issuer of access tokens: set auth_issuer", headers=_CHALLENGE)
        principal = await self._verify(token)
        if not principal.may(allow):
            raise Forbidden(_needed(allow))
        return principal


def _needed(allow: tuple[str, ...]) -> str:
    if services_only(allow):
        return "Only other services may call this"
    roles = [role for role in allow if role not in {ANYONE, SIGNED_IN}]
    return f"This needs the role {' or '.join(roles)}"
