"""Who signs tokens in these tests, and how a token is refused."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from microkit.auth import FixedKeys, Issuer, ServiceKeys, SigningKey, Verifier, generate_service_keys
from microkit.errors import Unauthorized

ISSUER = "https://user.example"
AUDIENCE = "billpay"
Forge = Callable[..., str]


@dataclass
class Trust:
    """A users' issuer and two services with keys of their own."""

    key: SigningKey = field(default_factory=SigningKey.generate)
    services: ServiceKeys = field(default_factory=lambda: generate_service_keys(["payment", "billing"]))

    def issuer(self) -> Issuer:
        return Issuer(ISSUER, audience=AUDIENCE, keys=[self.key])

    def verifier(self, *, leeway: float = 10.0, cache_size: int = 100) -> Verifier:
        return Verifier(
            {ISSUER: FixedKeys(self.issuer().jwks())},
            audience=AUDIENCE,
            services=FixedKeys(json.loads(self.services.public)),
            leeway=leeway,
            cache_size=cache_size,
        )

    def service_key(self, name: str) -> SigningKey:
        return SigningKey.read(self.services.private[name])


async def refused(verifier: Verifier, token: str) -> Unauthorized:
    with pytest.raises(Unauthorized) as caught:
        await verifier.verify(token)
    assert caught.value.headers["WWW-Authenticate"].startswith('Bearer error="invalid_token"')
    return caught.value


def segment(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()
