"""Services that call in their own name, and speak for nobody else."""

from __future__ import annotations

import time

import pytest

from microkit.auth import FixedKeys, Issuer, ServiceTokens, SigningKey, Verifier
from microkit.errors import ConfigurationError
from tests.unit.auth.trust import AUDIENCE, ISSUER, Forge, Trust, refused

pytestmark = pytest.mark.anyio


async def test_a_service_calls_in_its_own_name(trust: Trust, verifier: Verifier) -> None:
    tokens = ServiceTokens("payment", trust.service_key("payment"), AUDIENCE)
    principal = await verifier.verify(tokens.token())
    assert principal.subject == "service:payment"
    assert principal.roles == {"service", "service:payment"}
    assert principal.is_service


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": "service:billing", "sub": "service:billing"},
        {"iss": "service:billing"},
        {"sub": "service:billing"},
        {"sub": "8c1d"},
        {"iss": ISSUER, "sub": "8c1d"},
        {"iss": "service:", "sub": "service:"},
        {"iss": "service:payment/2", "sub": "service:payment/2"},
    ],
    ids=str,
)
async def test_a_service_key_signs_for_that_service_alone(
    trust: Trust, verifier: Verifier, forge: Forge, claims: dict[str, str]
) -> None:
    good = {"iss": "service:payment", "sub": "service:payment", "roles": ["service"]}
    key = trust.service_key("payment")
    await verifier.verify(forge(good, {"kid": key.kid}, key=key))
    await refused(verifier, forge({**good, **claims}, {"kid": key.kid}, key=key))
    # Nor does it help to name the other's key.
    await refused(verifier, forge({**good, **claims}, {"kid": "service:billing"}, key=key))


async def test_a_service_has_no_role_but_service(trust: Trust, verifier: Verifier, forge: Forge) -> None:
    key = trust.service_key("payment")
    claims = {"iss": "service:payment", "sub": "service:payment", "roles": ["admin", "member"]}
    assert (await verifier.verify(forge(claims, {"kid": key.kid}, key=key))).roles == {"service", "service:payment"}


async def test_a_users_issuer_cannot_speak_for_a_service(trust: Trust) -> None:
    named_alike = SigningKey.of({**trust.key.jwk, "kid": "service:payment"})
    issuer = Issuer(ISSUER, audience=AUDIENCE, keys=[named_alike])
    verifier = Verifier({ISSUER: FixedKeys(issuer.jwks())}, audience=AUDIENCE)
    assert not (await verifier.verify(issuer.sign("8c1d").value)).is_service
    await refused(verifier, issuer.sign("service:payment", roles=["service"]).value)
    await refused(verifier, ServiceTokens("payment", named_alike, AUDIENCE).token())
    with pytest.raises(ConfigurationError, match="service:payment"):
        Verifier({"service:payment": FixedKeys(issuer.jwks())}, audience=AUDIENCE)


async def test_a_service_can_rotate_its_key(trust: Trust) -> None:
    old, new = SigningKey.generate("service:payment"), SigningKey.generate("service:payment/2")
    both = FixedKeys({"keys": [old.public_jwk(), new.public_jwk()]})
    verifier = Verifier({}, audience=AUDIENCE, services=both)
    for key in (old, new):
        token = ServiceTokens("payment", key, AUDIENCE).token()
        assert (await verifier.verify(token)).subject == "service:payment"


def test_a_service_cannot_start_with_the_key_of_another(trust: Trust) -> None:
    with pytest.raises(ConfigurationError, match="'service:billing'; it must be 'service:payment'"):
        ServiceTokens("payment", trust.service_key("billing"), AUDIENCE)


def test_a_service_signs_anew_before_its_token_is_old(trust: Trust, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = ServiceTokens("payment", trust.service_key("payment"), AUDIENCE, lifetime=300.0)
    first = tokens.token()
    assert tokens.token() == first
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 149)
    assert tokens.token() == first
    monkeypatch.setattr(time, "time", lambda: now + 151)
    second = tokens.token()
    assert second != first
    monkeypatch.setattr(time, "time", lambda: now - 3600)
    assert tokens.token() not in {first, second}
