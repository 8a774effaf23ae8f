"""The rules of accounts: what a password must be, whom an address stands for, what a refresh token is."""

from __future__ import annotations

import secrets
import unicodedata
from collections.abc import Set
from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256
from ipaddress import IPv6Address, ip_address
from typing import Final

from microkit.contract import SERVICE
from reference.billpay.contracts.user import WeakPassword

SHORTEST: Final = 8
LONGEST: Final = 128
MEMBER: Final = "member"
ADMIN: Final = "admin"
REMEMBERED: Final = timedelta(hours=24)
"""How long a registration that is sent again has the same answer, as everywhere where there are Idempotency-Keys."""

RESERVED_ROLES: Final = frozenset({SERVICE})
"""Roles that no person can hold."""


def normal_form(password: str) -> str | None:
    """The password as it is hashed: NFKC, so that it is the same from every keyboard (NIST SP 800-63B, 3.1.1.2).

    ``None`` where no valid password has this form: it is shorter than 8 code points or longer than 128.
    """
    if len(password) > 4 * LONGEST:  # before normalizing: one code point can become eighteen
        return None
    normal = unicodedata.normalize("NFKC", password)
    if not SHORTEST <= len(normal) <= LONGEST:
        return None
    return normal if normal.isascii() or _encodable(normal) else None


def _encodable(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def accepted_password(password: str, *, email: str, name: str, breached: Set[str]) -> str:
    """The password in its normal form.

    Raises:
        WeakPassword: it is too short, too long, on the list of breached ones, or the person's own name or address.
    """
    normal = normal_form(password)
    if normal is None:
        raise WeakPassword(f"A password has {SHORTEST} to {LONGEST} characters")
    folded = normal.casefold()
    if folded in breached:
        raise WeakPassword("This password is on lists of breached passwords: whoever attacks an account tries it first")
    if folded in {email.casefold(), email.casefold().partition("@")[0], name.casefold()}:
        raise WeakPassword("The password is your name or your e-mail address")
    if len(set(folded)) < 3:
        raise WeakPassword("The password repeats one or two characters")
    return normal


def email_key(email: str) -> str:
    """The e-mail address as it is compared."""
    return unicodedata.normalize("NFKC", email).casefold()


def registration(key: str, email: str, name: str) -> bytes:
    """By what a registration is known that is sent again: its Idempotency-Key and what in it is no secret.

    The password is not among it: a digest of a request with one could be tried against lists of passwords at leisure.
    That it is the same one, the account's own argon2 hash tells.
    """
    digest = sha256()
    for part in (key, email, name):
        encoded = part.encode("utf-8", "surrogatepass")
        digest.update(b"%d:%b" % (len(encoded), encoded))
    return digest.digest()


def network_of(address: str) -> str:
    """Whom an address stands for when attempts are counted: itself, or with IPv6 its /64, which one host owns whole."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address[:64]
    if isinstance(parsed, IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return f"{IPv6Address(int(parsed) >> 64 << 64)}/64"
    return str(parsed)


@dataclass(frozen=True, slots=True)
class RefreshToken:
    """256 random bits for the client, their SHA-256 for us."""

    value: str
    digest: bytes

    @classmethod
    def new(cls) -> RefreshToken:
        return cls.of(secrets.token_urlsafe(32))

    @classmethod
    def of(cls, value: str) -> RefreshToken:
        return cls(value, sha256(value.encode("utf-8", "surrogatepass")).digest())

    def __repr__(self) -> str:
        return "RefreshToken(…)"
