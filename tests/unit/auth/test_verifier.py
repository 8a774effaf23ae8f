"""What an attacker sends as a token, and what happens to it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from microkit.auth import (
    FixedKeys,
    Issuer,
    Principal,
    ServiceKeys,
    ServiceTokens,
    SigningKey,
    Verifier,
    generate_service_keys,
    verifier_for,
)
from microkit.errors import ConfigurationError, Unauthorized

pytestmark = pytest.mark.anyio

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


async def refused(verifier: Verifier, token: str) -> Unauthorized:
    with pytest.raises(Unauthorized) as caught:
        await verifier.verify(token)
    assert caught.value.headers["WWW-Authenticate"].startswith('Bearer error="invalid_token"')
    return caught.value


def segment(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def hmac_token(secret: bytes, header: dict[str, Any], payload: dict[str, Any]) -> str:
    signing_input = f"{segment(header)}.{segment(payload)}"
    digest = hmac.new(secret, signing_input.encode(), hashlib.sha256).digest()
    return f"{signing_input}.{base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}"


async def test_a_good_token_names_its_user(trust: Trust, verifier: Verifier) -> None:
    token = trust.issuer().sign("8c1d", roles=["member", "admin"], session="s1").value
    assert await verifier.verify(token) == Principal("8c1d", frozenset({"member", "admin"}), token, "s1")


async def test_the_helper_of_these_tests_makes_tokens_that_are_accepted(verifier: Verifier, forge: Forge) -> None:
    assert (await verifier.verify(forge())).subject == "8c1d"


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", ""])
async def test_a_token_without_signature_is_refused(
    trust: Trust, verifier: Verifier, forge: Forge, algorithm: str
) -> None:
    _, payload, signature = forge().split(".")
    header = segment({"alg": algorithm, "typ": "at+jwt", "kid": trust.key.kid})
    await refused(verifier, f"{header}.{payload}.")
    await refused(verifier, f"{header}.{payload}.{signature}")


async def test_a_token_signed_by_hmac_with_the_public_key_is_refused(
    trust: Trust, verifier: Verifier, forge: Forge
) -> None:
    payload = jwt.decode(forge(), options={"verify_signature": False})
    header = {"alg": "HS256", "typ": "at+jwt", "kid": trust.key.kid}
    public = trust.key.key.key.public_key()
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    raw = public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    jwk = json.dumps(trust.key.public_jwk()).encode()
    for secret in (pem, pem.strip(), raw, jwk, trust.key.jwk["x"].encode(), b""):
        await refused(verifier, hmac_token(secret, header, payload))


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


@pytest.mark.parametrize("kid", ["unknown", "", "../../../dev/null", "' OR 1=1 --", "0", "x" * 4000])
async def test_an_unknown_key_id_is_refused(verifier: Verifier, forge: Forge, kid: str) -> None:
    await refused(verifier, forge(header={"kid": kid}))


async def test_a_key_that_the_token_brings_along_is_not_used(verifier: Verifier, forge: Forge, trust: Trust) -> None:
    own = SigningKey.generate()
    for header in (
        {"jwk": own.public_jwk()},
        {"jku": "http://127.0.0.1:9/jwks.json"},
        {"x5u": "http://127.0.0.1:9/cert.pem"},
        {"x5c": ["MIIB"]},
    ):
        await refused(verifier, forge(header={**header, "kid": own.kid}, key=own))
        await refused(verifier, forge(header={**header, "kid": trust.key.kid}, key=own))
        # With the right signature they are beside the point, and are not looked at.
        await verifier.verify(forge(header=header))


def signed_by_hand(key: SigningKey, header: dict[str, Any], payload: str) -> str:
    """For headers that PyJWT does not sign."""
    signing_input = f"{segment(header)}.{payload}"
    signature = key.key.key.sign(signing_input.encode())
    return f"{signing_input}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


async def test_critical_header_members_are_refused(verifier: Verifier, forge: Forge, trust: Trust) -> None:
    payload = forge().split(".")[1]
    plain = {"alg": "EdDSA", "typ": "at+jwt", "kid": trust.key.kid}
    await verifier.verify(signed_by_hand(trust.key, plain, payload))
    extras: list[dict[str, Any]] = [{"crit": ["exp"], "exp": 1}, {"crit": []}, {"b64": False, "crit": ["b64"]}]
    for extra in [*extras, {"b64": True}, {"crit": ["made-up"], "made-up": 1}, {"crit": None}]:
        await refused(verifier, signed_by_hand(trust.key, {**plain, **extra}, payload))


async def test_a_key_verifies_with_its_own_algorithm_only(trust: Trust, forge: Forge) -> None:
    verifier = trust.verifier()
    rsa_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    payload = jwt.decode(forge(), options={"verify_signature": False})
    headers = {"typ": "at+jwt", "kid": trust.key.kid}
    await refused(verifier, jwt.encode(payload, rsa_key, "RS256", headers=headers))
    await refused(verifier, jwt.encode(payload, ec.generate_private_key(ec.SECP256R1()), "ES256", headers=headers))


async def test_es256_keys_work_too(forge: Forge) -> None:
    private = ec.generate_private_key(ec.SECP256R1())
    jwk = jwt.algorithms.ECAlgorithm.to_jwk(private, as_dict=True)
    key = SigningKey.of({**jwk, "kid": "p256"})
    issuer = Issuer(ISSUER, audience=AUDIENCE, keys=[key])
    assert issuer.jwks()["keys"][0]["alg"] == "ES256"
    verifier = Verifier({ISSUER: FixedKeys(issuer.jwks())}, audience=AUDIENCE)
    assert (await verifier.verify(issuer.sign("8c1d").value)).subject == "8c1d"


async def test_a_changed_token_is_refused(verifier: Verifier, forge: Forge) -> None:
    header, payload, signature = forge().split(".")
    claims = json.loads(base64.urlsafe_b64decode(payload + "=="))
    await refused(verifier, f"{header}.{segment({**claims, 'roles': ['admin']})}.{signature}")
    middle = len(signature) // 2
    flipped = signature[:middle] + ("A" if signature[middle] != "A" else "B") + signature[middle + 1 :]
    await refused(verifier, f"{header}.{payload}.{flipped}")
    await refused(verifier, f"{header}.{payload}.{signature[:-4]}")


@pytest.mark.parametrize(
    "token",
    [
        *("", ".", "..", "...", "a.b", "a.b.c", "a.b.c.d", "e30.e30.", "W10.W10.W10", "Bearer x", " ", "\x00", "é.é.é"),
        "x" * 9000,
        "." * 8000,
        segment([[[]]] * 100) + ".e30.e30",
        segment({"alg": "EdDSA", "kid": {}}) + ".e30.AA",
    ],
    ids=lambda token: token[:12],
)
async def test_what_is_no_token_is_refused(verifier: Verifier, token: str) -> None:
    await refused(verifier, token)


async def test_deeply_nested_json_in_a_token_is_refused(verifier: Verifier) -> None:
    deep = base64.urlsafe_b64encode(b'{"a":' + b"[" * 2500).rstrip(b"=").decode()
    await refused(verifier, f"{deep}.{deep}.AA")


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


async def test_a_known_token_is_not_verified_twice_but_ends_with_its_time(
    trust: Trust, forge: Forge, monkeypatch: pytest.MonkeyPatch
) -> None:
    verifier = trust.verifier(leeway=10.0)
    now = int(time.time())
    token = forge({"iat": now, "exp": now + 30})
    first = await verifier.verify(token)
    assert await verifier.verify(token) is first
    monkeypatch.setattr(time, "time", lambda: now + 39)
    assert await verifier.verify(token) is first
    monkeypatch.setattr(time, "time", lambda: now + 41)
    # PyJWT reads its own clock, which has not moved; that the token is looked at again is what counts here.
    assert await verifier.verify(token) is not first


async def test_a_withdrawn_key_ends_its_tokens_within_a_minute(trust: Trust, monkeypatch: pytest.MonkeyPatch) -> None:
    class Keys(FixedKeys):
        withdrawn = False

        async def find(self, kid: str) -> jwt.PyJWK | None:
            return None if self.withdrawn else await super().find(kid)

    keys = Keys(trust.issuer().jwks())
    verifier = Verifier({ISSUER: keys}, audience=AUDIENCE)
    token = trust.issuer().sign("8c1d").value
    await verifier.verify(token)
    keys.withdrawn = True
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 61)
    await refused(verifier, token)


async def test_the_memory_for_known_tokens_is_bounded(trust: Trust) -> None:
    verifier = trust.verifier(cache_size=8)
    tokens = [trust.issuer().sign(f"user-{number}").value for number in range(30)]
    for token in tokens:
        await verifier.verify(token)
    assert len(verifier._seen) == 8
    assert list(verifier._seen) == tokens[-8:]
    assert (await verifier.verify(tokens[0])).subject == "user-0"


async def test_a_refused_token_takes_no_memory(verifier: Verifier, forge: Forge) -> None:
    for number in range(50):
        await refused(verifier, forge({"aud": f"another-{number}"}))
    assert len(verifier._seen) == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"issuer": ISSUER}, "auth_jwks_url is missing"),
        ({"jwks_url": "http://x"}, "auth_issuer is missing"),
        ({"issuer": ISSUER, "jwks_url": "http://x", "audience": None}, "auth_audience is missing"),
        ({"service_keys": "/nowhere/keys.json"}, "auth_service_keys: the key file cannot be read"),
        ({"service_keys": "{"}, "auth_service_keys: the key is not JSON"),
        ({"service_keys": "{}"}, "auth_service_keys: that is no key set"),
    ],
)
async def test_settings_that_do_not_fit_together_name_the_key(given: dict[str, Any], message: str) -> None:
    nothing = dict.fromkeys(("issuer", "jwks_url", "service_keys"))
    with pytest.raises(ConfigurationError, match=message):
        verifier_for(**{**nothing, "audience": AUDIENCE, **given}, session=None)  # type: ignore[arg-type]


async def test_without_settings_there_is_no_verifier() -> None:
    assert verifier_for(issuer=None, audience=None, jwks_url=None, service_keys=None, session=None) is None  # type: ignore[arg-type]
