"""The values that settings are made of, and the rules for them."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from pydantic import Secret

from microkit.redaction import MASK, redact_text

SHORTEST_SECRET: Final = 16

_PLACEHOLDERS: Final = frozenset(
    {
        *("admin", "default", "dummy", "example", "guest", "letmein", "none", "null", "passw0rd", "password"),
        *("postgres", "qwerty", "root", "secret", "test", "todo", "topsecret", "user", "xxx"),
    }
)
_PLACEHOLDER_STARTS: Final = (
    *("changeme", "changethis", "insert", "placeholder", "replaceme", "replacethis"),
    *("yourkey", "yourpassword", "yoursecret"),
)
_HOST: Final = re.compile(
    r"\*|(\*\.)?[a-z0-9_]([a-z0-9_.-]{0,251}[a-z0-9_])?|\[[0-9a-f:.]+\]", re.ASCII | re.IGNORECASE
)


class SecretUrl(Secret[str]):
    """A URL that may hold a password: shown without it, whole only by ``get_secret_value()``."""

    def _display(self) -> str:
        scheme, separator, rest = self.get_secret_value().partition("://")
        userinfo, at, host = rest.rpartition("@")  # the last one, as SQLAlchemy reads it: the password may hold others
        user, colon, _ = userinfo.partition(":")
        return redact_text(f"{scheme}{separator}{user}{f':{MASK}' if colon else ''}{at}{host}")

    @property
    def password(self) -> str | None:
        """The password in it, as written."""
        try:
            return urlsplit(self.get_secret_value()).password
        except ValueError:
            return None


def upper(value: Any) -> Any:
    """``info`` as ``INFO``."""
    return value.upper() if isinstance(value, str) else value


def endpoints(value: Any) -> Any:
    """``user=http://a,http://b;payment=http://c`` as a dictionary of lists. JSON has been read before."""
    if isinstance(value, Mapping):
        return {name: [urls] if isinstance(urls, str) else urls for name, urls in value.items()}
    pairs = [part.partition("=") for part in value.split(";") if part.strip()] if isinstance(value, str) else []
    if not pairs or not all(equals and name.strip() and urls.strip() for name, equals, urls in pairs):
        raise ValueError("is written user=http://10.0.0.5:3001,http://10.0.0.6:3001;payment=http://10.0.0.7:3002")
    return {name.strip(): [url.strip() for url in urls.split(",")] for name, _, urls in pairs}


def named_limits(value: Any) -> Any:
    """``Billing.create=10/60s;POST /pay=5/m by=address`` as a dictionary. JSON has been read before."""
    if isinstance(value, Mapping):
        return value
    pairs = [part.partition("=") for part in value.split(";") if part.strip()] if isinstance(value, str) else []
    if not pairs or not all(equals and name.strip() and limit.strip() for name, equals, limit in pairs):
        raise ValueError("is written Billing.create=10/60s;POST /pay=5/m by=address;Billing.read=off")
    return {name.strip(): limit.strip() for name, _, limit in pairs}


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reached from this machine only."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def http_url(value: str | None) -> str | None:
    """Raises ValueError where it is no http URL."""
    if value is not None:
        parts = urlsplit(value)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("is no http:// or https:// URL")
    return value


def base_url(value: str | None) -> str | None:
    """Without a slash at its end. Raises ValueError where it is no http URL, or has more than scheme, host and port."""
    if http_url(value) is None or value is None:
        return None
    parts = urlsplit(value)
    if parts.path.strip("/") or parts.query or parts.fragment or parts.username or parts.password:
        raise ValueError("is scheme, host and port only, such as http://10.0.0.5:3003")
    return value.rstrip("/")


def refuse_weak(secret: str | bytes, shortest: int) -> None:
    """Raises ValueError where it is a placeholder or, unless ``shortest`` is 0, short or simple."""
    text = secret if isinstance(secret, str) else secret.decode("latin-1")
    plain = re.sub(r"[\W_]", "", text).lower()
    if plain in _PLACEHOLDERS or plain.startswith(_PLACEHOLDER_STARTS):
        raise ValueError("is a placeholder that everybody knows")
    if len(text) < shortest:
        raise ValueError(f"is too short to be a secret: {shortest} characters at least")
    if shortest and len(set(text)) < 5:
        raise ValueError("is too simple to be a secret")


def host_name(text: str) -> str:
    """Raises ValueError where it is no host name, ``*`` or ``*.domain``."""
    if not _HOST.fullmatch(text):
        raise ValueError(f"{text[:80]!r} is no host name: write it without scheme, port and path")
    return text


def network(text: str) -> str:
    """Raises ValueError where it is neither an address nor a network."""
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"{text[:80]!r} is no address and no network; an example: 10.0.0.0/8") from None
    return text
