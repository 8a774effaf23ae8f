"""Issues access tokens (RFC 9068) and publishes the keys to verify them with."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final
from uuid import uuid4

import jwt

from microkit.auth.keys import SigningKey, jwks
from microkit.errors import ConfigurationError

MAX_LIFETIME: Final = 600.0
"""Seconds. An access token cannot be taken back, so it is short."""


@dataclass(frozen=True, slots=True)
class AccessToken:
    """A signed token. ``expires_in`` is in seconds."""

    value: str = field(repr=False)
    expires_in: int


class Issuer:
    """Signs access tokens for the users of one system.

    ``issuer`` and ``audience`` are what verifiers demand, exactly. The first of ``keys`` signs; all are published.
    To rotate: add the new key at the end, let every verifier see it (five minutes), move it to the front, and remove
    the old one when the last token it signed has expired (ten minutes).
    """

    def __init__(
        self, issuer: str, *, audience: str, keys: Sequence[SigningKey], lifetime: float = MAX_LIFETIME
    ) -> None:
        if not keys:
            raise ConfigurationError(f"the issuer {issuer!r} has no signing key")
        if len({key.kid for key in keys}) != len(keys):
            raise ConfigurationError(f"two signing keys of the issuer {issuer!r} have the same 'kid'")
        if not 0 < lifetime <= MAX_LIFETIME:
            raise ConfigurationError(f"an access token lives {MAX_LIFETIME:.0f} s at most, not {lifetime} s")
        self.issuer = issuer
        self.audience = audience
        self.lifetime = lifetime
        self._keys = tuple(keys)

    def sign(self, subject: str, *, roles: Iterable[str] = (), session: str = "") -> AccessToken:
        """A token for ``subject``. ``session`` is put into the claim ``sid``."""
        claims = {"roles": sorted(roles)} | ({"sid": session} if session else {})
        return signed(self._keys[0], self.issuer, subject, self.audience, self.lifetime, claims)

    def jwks(self) -> dict[str, list[dict[str, str]]]:
        """The key set to publish."""
        return jwks(self._keys)


class ServiceTokens:
    """The tokens with which one service calls others in its own name.

    It signs them itself with its own key, whose id must be ``service:<name>`` (``service:<name>/<anything>`` while
    keys are rotated). ``lifetime`` is in seconds.
    """

    def __init__(self, service: str, key: SigningKey, audience: str, *, lifetime: float = 300.0) -> None:
        self.name = f"service:{service}"
        if key.kid.partition("/")[0] != self.name:
            raise ConfigurationError(
                f"auth_service_key of {service!r} has the id {key.kid!r}; it must be {self.name!r}, "
                "so that no service can sign in another's name"
            )
        self._key = key
        self._audience = audience
        self._lifetime = lifetime
        self._token = ""
        self._renew_at = 0.0

    def token(self) -> str:
        """A token that is good for at least half of its lifetime."""
        now = time.time()
        # The clock may have been set back: then the token would seem fresh for too long.
        if not self._renew_at - self._lifetime <= now < self._renew_at:
            claims = {"roles": ["service"]}
            self._token = signed(self._key, self.name, self.name, self._audience, self._lifetime, claims).value
            self._renew_at = now + self._lifetime / 2
        return self._token


def signed(
    key: SigningKey, issuer: str, subject: str, audience: str, lifetime: float, claims: Mapping[str, object]
) -> AccessToken:
    """A signed access token with the claims that RFC 9068 requires, and ``claims``."""
    now = int(time.time())
    payload = {
        **claims,
        "iss": issuer,
        "sub": subject,
        "aud": audience,
        "iat": now,
        "exp": now + int(lifetime),
        "jti": uuid4().hex,
    }
    headers = {"typ": "at+jwt", "kid": key.kid}
    return AccessToken(jwt.encode(payload, key.key, key.algorithm, headers=headers), int(lifetime))
