"""What an attacker sends as a token, and what happens to it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from microkit.auth import FixedKeys, Issuer, Principal, SigningKey, Verifier, verifier_for
from microkit.errors import ConfigurationError
from tests.unit.auth.trust import AUDIENCE, ISSUER, Forge, Trust, refused, segment

pytestmark = pytest.mark.anyio


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
