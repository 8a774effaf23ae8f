"""What must not be shown: in log lines, in error messages, in settings that are printed.

Two rules. A value whose *name* says that it is secret is replaced whole, however deep it is nested. In any *text*,
credentials that can be recognised by their form are replaced: bearer tokens, JWTs, passwords in URLs, ``password=…``.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Set
from functools import lru_cache
from itertools import islice, pairwise
from typing import Any, Final

from pydantic import BaseModel, Secret, SecretBytes, SecretStr

MASK: Final = "***"

MOST_ITEMS: Final = 100
MOST_CHARACTERS: Final = 8_192
DEEPEST: Final = 6

_SECRET_WORDS: Final = frozenset(
    {
        *("authorization", "cookie", "cookies", "password", "passwords", "passwd", "pwd", "passphrase"),
        *("token", "tokens", "jwt", "bearer", "otp", "totp", "seed", "secret", "secrets", "dsn"),
        *("apikey", "credential", "credentials"),
    }
)
_SECRET_PAIRS: Final = frozenset({("api", "key"), ("private", "key"), ("signing", "key"), ("encryption", "key")})
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")

_SCHEME_AND_TOKEN = re.compile(r"\b(bearer|basic|dpop)[ \t]+[A-Za-z0-9._~+/=-]{6,}", re.IGNORECASE)
_JWT = re.compile(r"\beyJ[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]*")
# RFC 3986 ends the userinfo at the first "/", SQLAlchemy's own parser at the last "@". The wider reading is masked,
# except where what follows the colon is a port. Bounded, so that hostile text costs linear time.
_URL_PASSWORD = re.compile(r"(://[^\s:/@\"']{0,256}:)(?!\d{1,5}(?:[/?#\s]|$))[^\s\"']{0,2048}@")
_HEADER = re.compile(r"\b((?:proxy-)?authorization|(?:set-)?cookie)([\"']?[ \t]*[:=][ \t]*)[^\r\n]+", re.IGNORECASE)
_PAIR = re.compile(
    r"(passwords?|passwd|pwd|passphrase|token|otp|seed|secret|dsn|api[_-]?key|private[_-]?key)"
    r"([\"']?[ \t]*[=:][ \t]*)(\"[^\"\r\n]*\"|'[^'\r\n]*'|[^\s\"',;&)}\]]+)",
    re.IGNORECASE,
)

_SCHEMES: Final = ("bearer", "basic", "dpop")
_HEADERS: Final = ("authorization", "cookie")
_STEMS: Final = ("pass", "pwd", "token", "otp", "seed", "secret", "dsn", "key")


@lru_cache(maxsize=4096)
def names_a_secret(name: str) -> bool:
    """Whether what goes by this name is not for showing: ``set-cookie``, ``accessToken``, ``DATABASE_PASSWORD``."""
    words = [word.lower() for word in _WORD.findall(name[:128])]
    return not _SECRET_WORDS.isdisjoint(words) or any(pair in _SECRET_PAIRS for pair in pairwise(words))


def redact_text(text: str) -> str:
    """``text`` without the credentials in it that can be recognised by their form."""
    lower = text.lower()  # looking for a word first is some ten times cheaper than an expression that finds nothing
    if any(scheme in lower for scheme in _SCHEMES):
        text = _SCHEME_AND_TOKEN.sub(rf"\1 {MASK}", text)
    if "eyj" in lower:
        text = _JWT.sub(MASK, text)
    if "@" in text and "://" in text:
        text = _URL_PASSWORD.sub(rf"\1{MASK}@", text)
    if "=" in text or ":" in text:
        if any(header in lower for header in _HEADERS):
            text = _HEADER.sub(rf"\1\2{MASK}", text)
        if any(stem in lower for stem in _STEMS):
            text = _PAIR.sub(rf"\1\2{MASK}", text)
    return text


def said(value: object) -> str:
    """``str(value)``, whatever it is: bounded, redacted, and never an exception."""
    return redact_text(_bounded(_as_text(value)))


def redact(value: Any, *, depth: int = DEEPEST) -> Any:
    """``value`` as plain JSON data, without secrets, and bounded: at most ``depth`` levels, ``MOST_ITEMS`` items of a
    collection and ``MOST_CHARACTERS`` of a text. Whatever JSON does not know becomes its ``str``."""
    if value is None or isinstance(value, bool | float | int):
        return value if not isinstance(value, int) or -(2**63) <= value < 2**63 else str(value)[:MOST_CHARACTERS]
    if isinstance(value, str):
        return redact_text(_bounded(value))
    value = _as_collection(value)
    if not isinstance(value, Mapping | list | tuple | Set):
        return said(value)
    if depth == 0:
        return "…"
    if isinstance(value, Mapping):
        return _redact_mapping(value, depth)
    shown = [redact(item, depth=depth - 1) for item in islice(value, MOST_ITEMS)]
    return shown if len(value) <= MOST_ITEMS else [*shown, f"… {len(value) - MOST_ITEMS} more"]


def shown(name: str, value: Any) -> Any:
    """``value`` as it may be shown under ``name``. Numbers are shown whatever they are called: a
    ``token_lifetime`` of 600 is no secret; pydantic's secrets show themselves."""
    if value is None or isinstance(value, bool | int | float | Secret | SecretStr | SecretBytes):
        return value
    return MASK if names_a_secret(name) else redact(value)


def _as_collection(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return {name: getattr(value, name) for name in type(value).model_fields}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
    return value


def _redact_mapping(value: Mapping[Any, Any], depth: int) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    for key in value:
        if len(shown) == MOST_ITEMS:
            shown["…"] = f"{len(value) - MOST_ITEMS} more"
            break
        name = _bounded(_as_text(key))
        shown[name] = MASK if names_a_secret(name) else redact(value[key], depth=depth - 1)
    return shown


def _as_text(value: Any) -> str:
    try:
        return str(value)
    except Exception as error:  # noqa: BLE001  a log line must not fail because of what it shows
        return f"<{type(value).__name__} whose str() raises {type(error).__name__}>"


def _bounded(text: str) -> str:
    if len(text) > MOST_CHARACTERS:
        text = f"{text[:MOST_CHARACTERS]}… {len(text) - MOST_CHARACTERS} more"
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate, which no encoder takes
        text = text.encode("utf-8", "backslashreplace").decode()
    return text
