"""Who is calling: access tokens, their issuers and keys, and the principal they name."""

from microkit.auth.bearer import bearer_token, token_missing, token_refused
from microkit.auth.issuer import AccessToken, Issuer, ServiceTokens
from microkit.auth.key_source import FixedKeys, KeySource, RemoteKeys
from microkit.auth.keys import ServiceKeys, SigningKey, generate_service_keys
from microkit.auth.principal import ANONYMOUS, Principal
from microkit.auth.verifier import Verifier, verifier_for

__all__ = [
    "ANONYMOUS",
    "AccessToken",
    "FixedKeys",
    "Issuer",
    "KeySource",
    "Principal",
    "RemoteKeys",
    "ServiceKeys",
    "ServiceTokens",
    "SigningKey",
    "Verifier",
    "bearer_token",
    "generate_service_keys",
    "token_missing",
    "token_refused",
    "verifier_for",
]
