"""Looks for secrets in what a system tells: those that were used, in any spelling, and whatever has a secret's form."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import quote

FORMS = {
    "a JWT": re.compile(rb"eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{20,}"),
    "a Stellar seed": re.compile(rb"\bS[A-D][A-Z2-7]{54}\b"),
    "a private JWK": re.compile(rb"\"d\\*\"\s*:\s*\\*\"[A-Za-z0-9_-]{40,}"),
    "a password's hash": re.compile(rb"\$argon2id\$"),
    "a private key": re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
}


@dataclass
class Leaks:
    """``secrets`` by what they are; texts of fewer than 8 characters would be found by chance, so there are none."""

    secrets: dict[str, str] = field(default_factory=dict)

    def keep(self, what: str, secret: str) -> str:
        """Remembers a secret that is used from now on."""
        assert len(secret) >= 8
        self.secrets[what] = secret
        return secret

    def found(self, told: Mapping[str, bytes]) -> list[str]:
        """A sentence for each secret in each of the texts."""
        spelled = {what: tuple(_spellings(secret)) for what, secret in self.secrets.items()}
        found = []
        for where, text in told.items():
            found += [
                f"{what} in {where}: {_around(text, text.index(spelling))}"
                for what, spellings in spelled.items()
                for spelling in spellings
                if spelling in text
            ]
            found += [
                f"{what} in {where}: {_around(text, match.start())}"
                for what, form in FORMS.items()
                if (match := form.search(text))
            ]
        return found


def _spellings(secret: str) -> Iterator[bytes]:
    raw = secret.encode()
    yield from {raw, quote(secret, safe="").encode(), secret[::-1].encode(), raw.hex().encode()}
    # Base64 of a secret within a longer text: each of the three places that it can begin at, without its ragged ends.
    for shift in range(3):
        whole = base64.b64encode(b"\0" * shift + raw)
        inner = whole[4 if shift else 0 : len(whole) - 4]
        if len(inner) >= 12:
            yield inner


def _around(text: bytes, at: int) -> str:
    return text[max(0, at - 90) : at + 40].decode("utf-8", "replace").replace("\n", " ")
