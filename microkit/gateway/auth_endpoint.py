"""Says to a proxy who calls and whether they may: what nginx' ``auth_request`` and Envoy's ``ext_authz`` ask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

from microkit.auth.principal import Principal
from microkit.errors import BadRequest, DefinitionError
from microkit.gateway.exchange import Answer, Exchange
from microkit.gateway.identity import Identity, Verify
from microkit.gateway.route import Route
from microkit.proxies import ClientAddress
from microkit.request_head import bearer

AUTH_PATH = "/internal/auth"
"""Where it is asked: ``?role=member&role=admin&scope=bills``, with the client's ``Authorization``."""


class AuthEndpoint:
    """The gateway's own token check (:class:`~microkit.gateway.identity.Identity`), for others to ask.

    It tells whoever sends a token what that token is good for, and nothing else; still it is for the proxy alone, and
    is there only where the setting ``auth_endpoint`` says so.
    """

    def __init__(self, verify: Verify | None) -> None:
        self._verify = verify
        self._identity = lru_cache(maxsize=256)(self._made)

    async def who(self, asked: Mapping[bytes, bytes], roles: Sequence[str], scopes: Sequence[str]) -> Principal:
        """The owner of the token; an anonymous one where ``roles`` let anybody pass. ``asked`` are the headers, by
        lower-case name.

        Raises:
            BadRequest: no role is named: whoever asks so is not what this is for.
            Unauthorized: a token is needed, and there is none that counts.
            Forbidden: its owner may not.
        """
        try:
            identity = self._identity(tuple(roles), tuple(scopes))
        except DefinitionError:
            raise BadRequest("Ask with the roles of a route: role=member, role=+ for all who are signed in") from None
        exchange = Exchange({"method": "GET", "query_string": b""}, "/", asked, [], ClientAddress("", "http", ""), None)
        exchange.token = bearer(asked.get(b"authorization"))
        await identity.identify(exchange)
        return exchange.principal

    def _made(self, roles: tuple[str, ...], scopes: tuple[str, ...]) -> Identity:
        return Identity(Route("/", "asked", allow=roles, scopes=scopes), self._verify, _never)


async def _never(_: Exchange) -> Answer:
    raise NotImplementedError  # only the token is looked at
