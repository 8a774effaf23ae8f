"""What a token has to say of itself: its claims, its times, its type."""

from __future__ import annotations

import time
from typing import Any

import pytest

from microkit.auth import Verifier
from microkit.errors import ConfigurationError
from tests.unit.auth.trust import AUDIENCE, ISSUER, Forge, Trust, refused

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("claim", ["exp", "iat", "iss", "aud", "sub", "jti"])
async def test_a_token_without_a_required_claim_is_refused(verifier: Verifier, forge: Forge, claim: str) -> None:
    await refused(verifier, forge({claim: None}))


@pytest.mark.parametrize(
    "claims",
    [
        {"aud": "another"},
        {"aud": "billpay2"},
        {"aud": ["another", AUDIENCE]},
        {"aud": [AUDIENCE]},
        {"aud": ""},
        {"aud": {}},
        {"iss": "https://user.example/"},
        {"iss": "https://USER.example"},
        {"iss": "https://evil.example"},
        {"iss": [ISSUER]},
        {"iss": ""},
        {"sub": ""},
        {"sub": 7},
        {"sub": "service:payment"},
        {"sub": "key:acme"},
        {"jti": 7},
        {"jti": ""},
        {"roles": "admin"},
        {"roles": {"admin": True}},
        {"roles": ["member", 7]},
        {"roles": ["service"]},
        {"roles": ["member", "service"]},
        {"sid": 7},
        {"exp": "99999999999"},
        {"exp": 99999999999.5},
        {"exp": True},
        {"exp": float("nan")},
        {"exp": float("inf")},
        {"exp": 1e300},
        {"exp": [99999999999]},
        {"iat": "1"},
        {"iat": -(10**30)},
        {"nbf": 99999999999},
        {"nbf": "soon"},
    ],
    ids=str,
)
async def test_a_claim_of_another_value_or_type_is_refused(
    verifier: Verifier, forge: Forge, claims: dict[str, Any]
) -> None:
    await refused(verifier, forge(claims))


async def test_an_expired_token_is_refused_with_its_reason(verifier: Verifier, forge: Forge) -> None:
    now = int(time.time())
    error = await refused(verifier, forge({"iat": now - 400, "exp": now - 60}))
    assert error.detail == "The access token has expired"


async def test_clocks_may_differ_by_the_leeway_and_no_more(trust: Trust, forge: Forge) -> None:
    verifier = trust.verifier(leeway=30.0)
    now = int(time.time())
    await verifier.verify(forge({"iat": now - 300, "exp": now - 20}))
    await verifier.verify(forge({"iat": now + 20, "exp": now + 300}))
    await refused(verifier, forge({"iat": now - 300, "exp": now - 40}))
    await refused(verifier, forge({"iat": now + 60, "exp": now + 300}))
    with pytest.raises(ConfigurationError, match="30 s"):
        trust.verifier(leeway=31.0)


async def test_a_token_that_lives_longer_than_ten_minutes_is_refused(verifier: Verifier, forge: Forge) -> None:
    now = int(time.time())
    await verifier.verify(forge({"iat": now, "exp": now + 600}))
    await refused(verifier, forge({"iat": now, "exp": now + 601}))
    await refused(verifier, forge({"iat": 0, "exp": now + 300}))


@pytest.mark.parametrize("kind", ["JWT", "jwt", "", "id+jwt", "dpop+jwt", "logout+jwt", "at+jwt;x", None])
async def test_a_token_of_another_type_is_refused(verifier: Verifier, forge: Forge, kind: str | None) -> None:
    await refused(verifier, forge(header={"typ": kind}))


@pytest.mark.parametrize("kind", ["at+jwt", "AT+JWT", "application/at+jwt"])
async def test_the_type_may_be_written_as_the_rfc_allows(verifier: Verifier, forge: Forge, kind: str) -> None:
    await verifier.verify(forge(header={"typ": kind}))
