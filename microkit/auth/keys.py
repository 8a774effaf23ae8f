"""Signing keys and key sets (JWK, RFC 7517): Ed25519 and P-256, each with the one algorithm that belongs to it."""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt import PyJWK, PyJWTError
from jwt.algorithms import OKPAlgorithm

from microkit.errors import ConfigurationError

_ALGORITHMS: Final = {("OKP", "Ed25519"): "EdDSA", ("EC", "P-256"): "ES256"}
_THUMBPRINT_MEMBERS: Final = {"OKP": ("crv", "kty", "x"), "EC": ("crv", "kty", "x", "y")}
_PUBLIC_MEMBERS: Final = ("kty", "crv", "x", "y", "kid", "alg", "use")

_EXAMPLE: Final = (
    '{"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "…", "kid": "2026-01", "alg": "EdDSA", "use": "sig"}]}'
)


class UnusableKey(ConfigurationError):
    """A JWK that this project does not sign or verify with; the message says why and holds no key material."""


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key with its id. What is signed with it names ``kid`` in its header."""

    kid: str
    algorithm: str
    jwk: Mapping[str, str] = field(repr=False)
    key: PyJWK = field(repr=False, compare=False)

    @classmethod
    def generate(cls, kid: str | None = None) -> Self:
        """A new Ed25519 key. Its id is its thumbprint (RFC 7638) where none is given."""
        jwk = OKPAlgorithm.to_jwk(Ed25519PrivateKey.generate(), as_dict=True)
        return cls.of({**jwk, "alg": "EdDSA", "use": "sig", "kid": kid or thumbprint(jwk)})

    @classmethod
    def of(cls, jwk: Mapping[str, Any]) -> Self:
        """The key that a private JWK describes.

        Raises:
            UnusableKey: it is public, of another kind, or damaged.
        """
        key = read_key(jwk)
        if not jwk.get("d"):
            raise UnusableKey(
                f"key {jwk.get('kid')!r} is a public key: signing needs the private one, with its member 'd'"
            )
        return cls(str(jwk["kid"]), key.algorithm_name, dict(jwk), key)

    @classmethod
    def read(cls, source: str) -> Self:
        """The key in ``source``: a private JWK as JSON, or the path of a file with one.

        Raises:
            ConfigurationError: there is no such file, or no usable private key in it.
        """
        return cls.of(read_json(source, example='{"kty": "OKP", "crv": "Ed25519", "x": "…", "d": "…", "kid": "…"}'))

    def public_jwk(self) -> dict[str, str]:
        """The JWK to publish: without the private part."""
        return {name: self.jwk[name] for name in _PUBLIC_MEMBERS if name in self.jwk} | {"alg": self.algorithm}

    def private_jwk(self) -> str:
        """The whole JWK as JSON, to be kept secret."""
        return json.dumps(dict(self.jwk))


class ServiceKeys(NamedTuple):
    """The keys of a system's services: one private JWK (JSON) a service, and the JWKS (JSON) with all public ones."""

    private: dict[str, str]
    public: str


def generate_service_keys(services: Iterable[str]) -> ServiceKeys:
    """New keys for each service, with the ids ``service:<name>``, as ``auth_service_key(s)`` take them."""
    keys = {service: SigningKey.generate(f"service:{service}") for service in services}
    return ServiceKeys(
        private={service: key.private_jwk() for service, key in keys.items()},
        public=json.dumps(jwks(keys.values())),
    )


def jwks(keys: Iterable[SigningKey]) -> dict[str, list[dict[str, str]]]:
    """The public key set (RFC 7517, 5)."""
    return {"keys": [key.public_jwk() for key in keys]}


def thumbprint(jwk: Mapping[str, Any]) -> str:
    """The key's SHA-256 thumbprint (RFC 7638): the same key always has the same."""
    members = {name: jwk[name] for name in _THUMBPRINT_MEMBERS[jwk["kty"]]}
    digest = sha256(json.dumps(members, separators=(",", ":"), sort_keys=True).encode()).digest()
    return urlsafe_b64encode(digest).rstrip(b"=").decode()


def read_key(jwk: object) -> PyJWK:
    """One JWK, private or public, bound to its algorithm.

    Raises:
        UnusableKey: it has no id, is neither Ed25519 nor P-256, says another algorithm or use, or is damaged.
    """
    if not isinstance(jwk, Mapping):
        raise UnusableKey("a key is not a JSON object")
    kid = jwk.get("kid")
    if not isinstance(kid, str) or not kid:
        raise UnusableKey("a key has no 'kid'")
    algorithm = _ALGORITHMS.get((str(jwk.get("kty")), str(jwk.get("crv"))))
    if algorithm is None:
        raise UnusableKey(f"key {kid!r} is neither Ed25519 nor P-256")
    if jwk.get("alg", algorithm) != algorithm or jwk.get("use", "sig") != "sig":
        raise UnusableKey(f"key {kid!r} is not for signatures with {algorithm}")
    try:
        return PyJWK(dict(jwk), algorithm)
    except (PyJWTError, ValueError, TypeError):
        raise UnusableKey(f"key {kid!r} is damaged") from None  # the cause may quote the key


def read_key_set(document: object) -> dict[str, PyJWK]:
    """The public keys of a JWKS by their ids.

    Raises:
        UnusableKey: the document is no JWKS, a key is unusable, private, or has the id of another.
    """
    listed = document.get("keys") if isinstance(document, Mapping) else None
    if not isinstance(listed, list):
        raise UnusableKey(f"that is no key set; an example: {_EXAMPLE}")
    found: dict[str, PyJWK] = {}
    for jwk in listed:
        key = read_key(jwk)
        kid = str(jwk["kid"])
        if "d" in jwk:
            raise UnusableKey(f"key {kid!r} is a private key: only public keys belong into a key set that others read")
        if kid in found:
            raise UnusableKey(f"two keys have the id {kid!r}")
        found[kid] = key
    return found


def read_json(source: str, *, example: str = _EXAMPLE) -> Any:
    """The JSON in ``source``, which is the text itself, or the path of a file with it.

    Raises:
        ConfigurationError: there is no such file, or it holds something else.
    """
    text = source.strip()
    if not text.startswith("{"):
        try:
            text = Path(text).expanduser().read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigurationError(
                f"the key file cannot be read: {error.strerror}; an example of its content: {example}"
            ) from None
    try:
        return json.loads(text)
    except ValueError:
        raise ConfigurationError(f"the key is not JSON; an example: {example}") from None
