"""Keys are read strictly, and their private part never shows."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import jwt
import pytest

from microkit.auth import (
    Issuer,
    Principal,
    SigningKey,
    bearer_token,
    generate_service_keys,
    token_missing,
    token_refused,
)
from microkit.auth.keys import read_key_set, thumbprint
from microkit.errors import ConfigurationError, Unauthorized


def test_the_thumbprint_is_the_one_of_the_rfc() -> None:
    """RFC 8037, appendix A.3."""
    jwk = {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}
    assert thumbprint(jwk) == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"


def test_a_published_key_holds_no_private_part() -> None:
    key = SigningKey.generate()
    private = key.jwk["d"]
    services = generate_service_keys(["a", "b"])
    issuer = Issuer("i", audience="a", keys=[key])
    assert set(key.public_jwk()) == {"kty", "crv", "x", "kid", "alg", "use"}
    for shown in (json.dumps(issuer.jwks()), repr(key), str(key), services.public):
        assert private not in shown
        assert '"d"' not in shown


def test_a_token_shows_in_no_repr() -> None:
    token = Issuer("i", audience="a", keys=[SigningKey.generate()]).sign("8c1d")
    assert token.value not in repr(token)
    assert token.value not in repr(Principal("8c1d", token=token.value))


def test_each_service_gets_a_key_with_its_name() -> None:
    private, public = generate_service_keys(["payment", "billing"])
    assert list(read_key_set(json.loads(public))) == ["service:payment", "service:billing"]
    assert SigningKey.read(private["payment"]).kid == "service:payment"


def test_a_key_is_read_from_text_and_from_a_file(tmp_path: Path) -> None:
    key = SigningKey.generate()
    file = tmp_path / "key.json"
    file.write_text(key.private_jwk() + "\n")
    assert SigningKey.read(str(file)) == SigningKey.read(f" {key.private_jwk()}\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d": None}, "is a public key"),
        ({"d": "AAAA"}, "is damaged"),
        ({"x": "AAAA"}, "is damaged"),
        ({"x": 7}, "is damaged"),
        ({"kid": None}, "has no 'kid'"),
        ({"kid": ""}, "has no 'kid'"),
        ({"crv": "Ed448"}, "neither Ed25519 nor P-256"),
        ({"crv": "X25519"}, "neither Ed25519 nor P-256"),
        ({"kty": "oct"}, "neither Ed25519 nor P-256"),
        ({"alg": "HS256"}, "not for signatures with EdDSA"),
        ({"alg": "ES256"}, "not for signatures with EdDSA"),
        ({"use": "enc"}, "not for signatures with EdDSA"),
    ],
    ids=str,
)
def test_a_key_that_does_not_fit_is_refused_without_showing_it(change: dict[str, Any], message: str) -> None:
    jwk = {**SigningKey.generate("k1").jwk, **change}
    secret = jwk["d"]
    with pytest.raises(ConfigurationError, match=message) as caught:
        SigningKey.of({name: value for name, value in jwk.items() if value is not None})
    assert not secret or secret not in str(caught.value)


def test_a_damaged_key_is_not_quoted_by_the_cause_either() -> None:
    jwk = {**SigningKey.generate("k1").jwk, "x": "AAAA"}
    with pytest.raises(ConfigurationError) as caught:
        SigningKey.of(jwk)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (None, "no key set"),
        ({"keys": None}, "no key set"),
        ({"keys": [7]}, "not a JSON object"),
    ],
    ids=str,
)
def test_a_key_set_that_is_none_is_refused(document: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        read_key_set(document)


def test_a_private_key_in_a_public_set_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="is a private key"):
        read_key_set({"keys": [dict(SigningKey.generate("k1").jwk)]})


def test_two_keys_with_one_id_are_refused() -> None:
    keys = [SigningKey.generate("k1").public_jwk() for _ in range(2)]
    with pytest.raises(ConfigurationError, match="two keys have the id 'k1'"):
        read_key_set({"keys": keys})
    with pytest.raises(ConfigurationError, match="same 'kid'"):
        Issuer("i", audience="a", keys=[SigningKey.generate("k1"), SigningKey.generate("k1")])


def test_the_first_key_signs_and_all_are_published() -> None:
    new, old = SigningKey.generate(), SigningKey.generate()
    issuer = Issuer("i", audience="a", keys=[new, old])
    assert jwt.get_unverified_header(issuer.sign("8c1d").value)["kid"] == new.kid
    assert [key["kid"] for key in issuer.jwks()["keys"]] == [new.kid, old.kid]


def test_an_issuer_needs_a_key_and_short_tokens() -> None:
    with pytest.raises(ConfigurationError, match="has no signing key"):
        Issuer("i", audience="a", keys=[])
    for lifetime in (0.0, -1.0, 601.0, float("nan")):
        with pytest.raises(ConfigurationError, match="600 s at most"):
            Issuer("i", audience="a", keys=[SigningKey.generate()], lifetime=lifetime)


def test_a_token_holds_what_the_rfc_requires() -> None:
    before = int(time.time())
    token = Issuer("i", audience="a", keys=[SigningKey.generate()], lifetime=300.0).sign("8c1d", roles={"b", "a"})
    claims = jwt.decode(token.value, options={"verify_signature": False})
    assert token.expires_in == 300
    assert before <= claims["iat"] <= time.time()
    assert claims["exp"] == claims["iat"] + 300
    assert (claims["iss"], claims["aud"], claims["sub"], claims["roles"]) == ("i", "a", "8c1d", ["a", "b"])
    assert jwt.get_unverified_header(token.value)["typ"] == "at+jwt"


def test_no_two_tokens_have_the_same_id() -> None:
    issuer = Issuer("i", audience="a", keys=[SigningKey.generate()])
    ids = {jwt.decode(issuer.sign("x").value, options={"verify_signature": False})["jti"] for _ in range(100)}
    assert len(ids) == 100


@pytest.mark.parametrize("header", ["Bearer abc.def-_~+/", "bearer abc==", "BEARER  abc ", "BeArEr a"])
def test_the_bearer_header_is_read_as_the_rfc_writes_it(header: str) -> None:
    assert bearer_token(header) == header.split()[1]


@pytest.mark.parametrize(
    "header",
    [
        *(
            "",
            " ",
            "Bearer",
            "Bearer ",
            "Basic dXNlcjpwYXNz",
            "Bearer a b",
            "Bearer a,b",
            "Bearer \u00e9",
            "Bearer a\nb",
        ),
        *(" Bearer a", "Bearer\ta", "Bearera", "Bearer =", "Bearer a\n"),
    ],
)
def test_another_authorization_header_is_refused(header: str) -> None:
    with pytest.raises(Unauthorized) as caught:
        bearer_token(header)
    assert "invalid_token" in caught.value.headers["WWW-Authenticate"]


def test_without_a_header_there_is_no_token() -> None:
    assert bearer_token(None) is None
    assert token_missing().headers == {"WWW-Authenticate": "Bearer"}
    assert token_refused("No").status == 401
