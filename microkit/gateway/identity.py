"""Who is calling, and whether they may."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from microkit.auth.principal import Principal
from microkit.contract import ANYONE
from microkit.errors import Forbidden, Unauthorized
from microkit.gateway.exchange import Answer, Exchange, Handler
from microkit.gateway.route import Route

Verify = Callable[[str], Awaitable[Principal]]


class Identity:
    """The token check of one route: roles (``allow``) and scopes.

    On a route for everybody the service behind judges: an expired token must not keep anybody from the operation that
    renews it. The verifier keeps what it has verified until the token expires, for a minute at most, so that a token
    costs its signature check once; a key that is withdrawn ends its tokens within that minute.
    """

    def __init__(self, route: Route, verify: Verify | None, inner: Handler) -> None:
        self._roles = route.roles
        self._scopes = frozenset(route.scopes)
        self._open = ANYONE in route.roles
        self._verify = verify
        self._inner = inner

    async def answer(self, exchange: Exchange) -> Answer:
        if not exchange.principal.subject:
            await self.identify(exchange)
        elif not self._open:
            self._check(exchange.principal)
        return await self._inner(exchange)

    async def identify(self, exchange: Exchange) -> None:
        """Looks at the token.

        Raises:
            Unauthorized: one is needed, and there is none that counts.
            Forbidden: its owner may not, or is a service.
        """
        token = exchange.token
        if not token or self._verify is None:
            if self._open:
                return
            raise Unauthorized("Send an access token", headers={"WWW-Authenticate": "Bearer"})
        try:
            principal = await self._verify(token)
        except Unauthorized:
            if self._open:
                return
            raise
        if principal.is_service:
            raise Forbidden("Services call each other directly, not through the gateway")
        if not self._open:
            self._check(principal)
        exchange.principal = principal

    def _check(self, principal: Principal) -> None:
        if not principal.may(self._roles):
            raise Forbidden(f"This needs one of the roles: {', '.join(self._roles)}")
        if self._scopes and (missing := self._scopes - principal.scopes):
            needed = " ".join(sorted(self._scopes))
            challenge = f'Bearer error="insufficient_scope", scope="{needed}"'  # RFC 6750, 3.1
            raise Forbidden(
                f"The token is not for this: it lacks {', '.join(sorted(missing))}",
                headers={"WWW-Authenticate": challenge},
            )
