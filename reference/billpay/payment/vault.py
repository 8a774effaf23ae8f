"""Seeds of wallets at rest: AES-256-GCM under a key from the settings, bound to the address that they belong to.

A sealed seed is ``version (1 byte) | key id (4) | nonce (12) | ciphertext and tag``. The address is authenticated with
it, so that a seed copied to another wallet's row cannot be opened there.
"""

from __future__ import annotations

import secrets
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Sequence
from hashlib import sha256
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from microkit.errors import MicrokitError

KEY_BYTES: Final = 32
_VERSION: Final = b"\x01"
_ID_BYTES: Final = 4
_NONCE_BYTES: Final = 12


class CannotUnseal(MicrokitError):
    """A sealed seed was changed, belongs to another address, or was sealed with a key that is not there."""


def new_key() -> str:
    """A fresh key, in base64 as the settings take it."""
    return b64encode(secrets.token_bytes(KEY_BYTES)).decode("ascii")


def parse_key(text: str) -> bytes:
    """The key that ``text`` holds in base64.

    Raises:
        ValueError: it is not 32 bytes, or all of them are the same.
    """
    try:
        key = b64decode(text, validate=True)
    except (Base64Error, ValueError):
        raise ValueError("is not base64") from None
    if len(key) != KEY_BYTES:
        raise ValueError(f"has {len(key)} bytes, not {KEY_BYTES}")
    if len(set(key)) < KEY_BYTES // 4:
        raise ValueError("is no random key")
    return key


class Vault:
    """Seals with the first key, opens with any: a new key goes in front, the old one stays until all is sealed anew."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._current = _id(keys[0])
        self._ciphers = {_id(key): AESGCM(key) for key in keys}

    def seal(self, seed: bytes, address: str) -> bytes:
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return _VERSION + self._current + nonce + self._ciphers[self._current].encrypt(nonce, seed, address.encode())

    def unseal(self, sealed: bytes, address: str) -> bytes:
        """The seed of ``address``.

        Raises:
            CannotUnseal: see there.
        """
        key_id, rest = sealed[1 : 1 + _ID_BYTES], sealed[1 + _ID_BYTES :]
        cipher = self._ciphers.get(key_id)
        if sealed[:1] != _VERSION or cipher is None:
            raise CannotUnseal(f"the seed of {address} was sealed with a key that is not in the settings")
        try:
            return cipher.decrypt(rest[:_NONCE_BYTES], rest[_NONCE_BYTES:], address.encode())
        except InvalidTag:
            raise CannotUnseal(f"the sealed seed of {address} was changed or belongs to another address") from None


def _id(key: bytes) -> bytes:
    return sha256(b"microkit wallet key" + key).digest()[:_ID_BYTES]
