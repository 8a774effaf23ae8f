"""Verifies access tokens: who is calling?"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
import jwt

from microkit.auth.bearer import token_refused
from microkit.auth.issuer import MAX_LIFETIME
from microkit.auth.key_source import FixedKeys, KeySource, RemoteKeys
from microkit.auth.keys import read_json
from microkit.auth.principal import Principal
from microkit.contract import SERVICE, services_only
from microkit.errors import ConfigurationError

MAX_LEEWAY: Final = 30.0
MAX_LENGTH: Final = 8192

_SERVICE_PREFIX: Final = "service:"
_KEY_PREFIX: Final = "key:"
"""Whom a gateway knows by an API key; no user may be called so."""
_TYPES: Final = frozenset({"at+jwt", "application/at+jwt"})  # RFC 9068, 4
_REQUIRED: Final = ["exp", "iat", "iss", "aud", "sub", "jti"]
_TRUSTED_FOR: Final = 60.0
"""Seconds after which a cached token is looked at again, so that a withdrawn key ends the tokens it signed."""

_NOT_VALID: Final = "The access token is not valid"


@dataclass(frozen=True, slots=True)
class _Seen:
    principal: Principal
    until: float


class Verifier:
    """Turns access tokens into principals.

    ``issuers`` maps each trusted issuer to its keys: their tokens belong to users. ``services`` are the public keys of
    the system's services, with ids ``service:<name>``: each signs only for itself. A user's token never gets the role
    ``service``. Times are in seconds.
    """

    def __init__(
        self,
        issuers: Mapping[str, KeySource],
        *,
        audience: str,
        services: KeySource | None = None,
        leeway: float = 10.0,
        max_lifetime: float = MAX_LIFETIME,
        cache_size: int = 10_000,
    ) -> None:
        if not audience:
            raise ConfigurationError("auth_audience is empty: name whom access tokens must be for, such as billpay")
        if not 0 <= leeway <= MAX_LEEWAY:
            raise ConfigurationError(f"the leeway for clocks is at most {MAX_LEEWAY:.0f} s, not {leeway} s")
        for issuer in issuers:
            if not issuer or issuer.startswith(_SERVICE_PREFIX):
                raise ConfigurationError(f"auth_issuer {issuer!r} cannot be the name of a users' issuer")
        self._issuers = dict(issuers)
        self._services = services
        self._audience = audience
        self._leeway = leeway
        self._max_lifetime = max_lifetime
        self._cache_size = cache_size
        self._seen: dict[str, _Seen] = {}

    async def verify(self, token: str) -> Principal:
        """The principal whom ``token`` names.

        Raises:
            Unauthorized: the token is forged, expired, for somebody else, or otherwise not an access token of ours.
            Unavailable: the issuer's keys have never been loaded, and cannot be now.
        """
        seen = self._seen.get(token)
        if seen is not None and time.time() < seen.until:
            return seen.principal
        principal = await self._verify(token)
        now = time.time()
        self._seen.pop(token, None)
        while len(self._seen) >= self._cache_size:
            del self._seen[next(iter(self._seen))]
        trusted_until = now + _TRUSTED_FOR
        self._seen[token] = _Seen(principal, min(principal.expires_at or trusted_until, trusted_until))
        return principal

    def prepare(self) -> None:
        """Begins to load the issuers' keys."""
        for source in self._sources():
            source.prepare()

    async def close(self) -> None:
        """Ends the loading of keys."""
        for source in self._sources():
            await source.close()

    def _sources(self) -> Iterable[KeySource]:
        yield from self._issuers.values()
        if self._services is not None:
            yield self._services

    async def _verify(self, token: str) -> Principal:
        if len(token) > MAX_LENGTH or not token.isascii():
            raise token_refused(_NOT_VALID)
        try:
            unverified = jwt.decode_complete(token, options={"verify_signature": False})
        except jwt.PyJWTError:
            raise token_refused(_NOT_VALID) from None
        issuer, key = await self._key(unverified["header"], unverified["payload"])
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=[key.algorithm_name],
                audience=self._audience,
                issuer=issuer,
                leeway=self._leeway,
                options={"require": _REQUIRED, "strict_aud": True},
            )
        except jwt.ExpiredSignatureError:
            raise token_refused("The access token has expired") from None
        except jwt.PyJWTError:
            raise token_refused(_NOT_VALID) from None
        return self._principal(token, claims)

    async def _key(self, header: Mapping[str, Any], payload: Mapping[str, Any]) -> tuple[str, jwt.PyJWK]:
        """The issuer that an unverified token names, and the key it must be signed with. Nothing else in the token
        can bring a key: ``jku``, ``x5u``, ``x5c`` and ``jwk`` are not looked at."""
        kid, issuer, kind = header.get("kid"), payload.get("iss"), header.get("typ")
        if not (isinstance(kid, str) and isinstance(issuer, str) and isinstance(kind, str)):
            raise token_refused(_NOT_VALID)
        if kind.lower() not in _TYPES or "crit" in header or "b64" in header:
            raise token_refused(_NOT_VALID)
        if issuer.startswith(_SERVICE_PREFIX):
            source = self._services if kid.partition("/")[0] == issuer else None
        else:
            source = self._issuers.get(issuer)
        key = None if source is None else await source.find(kid)
        if key is None:
            raise token_refused(_NOT_VALID)
        return issuer, key

    def _principal(self, token: str, claims: Mapping[str, Any]) -> Principal:
        issuer, subject, expires_at, issued_at = claims["iss"], claims["sub"], claims["exp"], claims["iat"]
        roles, session, scope = claims.get("roles", []), claims.get("sid", ""), claims.get("scope", "")
        if type(expires_at) is not int or type(issued_at) is not int or not subject or not claims["jti"]:
            raise token_refused(_NOT_VALID)
        if expires_at - issued_at > self._max_lifetime:
            raise token_refused(_NOT_VALID)
        until = expires_at + self._leeway
        if issuer.startswith(_SERVICE_PREFIX):
            if subject != issuer:
                raise token_refused(_NOT_VALID)
            return Principal(subject, frozenset({SERVICE, subject}), token, expires_at=until)
        if not isinstance(roles, list) or not all(isinstance(role, str) for role in roles):
            raise token_refused(_NOT_VALID)
        if any(services_only([role]) for role in roles):
            raise token_refused(_NOT_VALID)
        if subject.startswith((_SERVICE_PREFIX, _KEY_PREFIX)):
            raise token_refused(_NOT_VALID)
        if not isinstance(session, str) or not isinstance(scope, str):
            raise token_refused(_NOT_VALID)
        return Principal(subject, frozenset(roles), token, session, frozenset(scope.split()), until)


def verifier_for(
    *,
    issuer: str | None,
    audience: str | None,
    jwks_url: str | None,
    service_keys: str | None,
    session: aiohttp.ClientSession,
) -> Verifier | None:
    """The verifier that the ``auth_…`` settings describe, ``None`` where they describe none.

    Raises:
        ConfigurationError: some are missing or wrong; the message names them.
    """
    if not (issuer or jwks_url or service_keys):
        return None
    if bool(issuer) != bool(jwks_url):
        missing = "auth_jwks_url" if issuer else "auth_issuer"
        raise ConfigurationError(
            f"{missing} is missing: auth_issuer and auth_jwks_url belong together, such as "
            "https://user.example and https://user.example/.well-known/jwks.json"
        )
    if not audience:
        raise ConfigurationError("auth_audience is missing: name whom access tokens must be for, such as billpay")
    users = {issuer: RemoteKeys(jwks_url, session)} if issuer and jwks_url else {}
    return Verifier(users, audience=audience, services=_service_keys(service_keys) if service_keys else None)


def _service_keys(source: str) -> FixedKeys:
    try:
        return FixedKeys(read_json(source))
    except ConfigurationError as error:
        raise ConfigurationError(f"auth_service_keys: {error}") from None
