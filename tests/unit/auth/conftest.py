"""A users' issuer, a verifier that trusts it, and tokens signed by it with changes."""

from __future__ import annotations

import json
from typing import Any

import jwt
import pytest

from microkit.auth import SigningKey, Verifier
from tests.unit.auth.trust import Forge, Trust


@pytest.fixture(scope="module")
def trust() -> Trust:
    return Trust()


@pytest.fixture
def verifier(trust: Trust) -> Verifier:
    return trust.verifier()


@pytest.fixture
def forge(trust: Trust) -> Forge:
    """Signs what a good access token holds, with the changes asked for; ``None`` takes a claim away."""

    def forge(
        claims: dict[str, Any] | None = None, header: dict[str, Any] | None = None, *, key: SigningKey | None = None
    ) -> str:
        token = trust.issuer().sign("8c1d", roles=["member"], session="s1").value
        good = jwt.decode(token, options={"verify_signature": False})
        payload = {name: value for name, value in {**good, **(claims or {})}.items() if value is not None}
        headers = {"typ": "at+jwt", "kid": trust.key.kid, **(header or {})}
        signer = key or trust.key
        return jwt.PyJWS().encode(json.dumps(payload).encode(), signer.key, signer.algorithm, headers=headers)

    return forge
