"""API keys: programs that call in nobody's name but their own."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

import orjson

from microkit.auth.principal import Principal
from microkit.errors import ConfigurationError, DefinitionError, Unauthorized
from microkit.gateway.exchange import Answer, Exchange, Handler
from microkit.gateway.filters.port import Filter, Phase, Tools

_HASH: Final = re.compile(r"[0-9a-f]{64}")
_LONGEST: Final = 512


def hashed(key: str) -> str:
    """What is kept of a key: SHA-256 in hexadecimal. A key is random and long (:func:`secrets.token_urlsafe`), so that
    a slow hash, as passwords need, would only help who wants to keep the gateway busy."""
    return hashlib.sha256(key.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class ApiKey:
    """Who has a key: ``name`` is told to the service as ``X-User-Id: key:<name>``, ``hash`` is what :func:`hashed`
    makes of the key; it never stands anywhere itself."""

    name: str
    hash: str = field(repr=False)
    roles: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.name or not _HASH.fullmatch(self.hash):
            raise DefinitionError(
                f"api-keys: {self.name!r} needs a name and the SHA-256 of its key, 64 hexadecimal digits"
            )


@dataclass(frozen=True, slots=True)
class ApiKeys(Filter):
    """Takes ``X-API-Key`` as proof of who calls, where one of ``keys`` fits: the route's ``allow`` and ``scopes`` are
    then held against the key's roles and scopes. A key that is unknown is a 401. Without one the token is looked at,
    unless the key is ``required``. The key is never passed on.

    ``setting`` names a setting of the service that holds more keys, as JSON: ``{"acme": {"hash": "…", "roles":
    ["member"]}}``.
    """

    kind: ClassVar[str] = "api-keys"
    phase: ClassVar[Phase] = Phase.IDENTITY

    keys: tuple[ApiKey, ...] = ()
    setting: str = ""
    header: str = "X-API-Key"
    required: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "keys", tuple(self.keys))
        if not self.keys and not self.setting:
            raise DefinitionError("api-keys: give it keys, or the setting that holds them")

    def around(self, inner: Handler, tools: Tools) -> Handler:
        known = [*self.keys, *(_read(tools.setting(self.setting), self.setting) if self.setting else ())]
        if len({key.name for key in known}) != len(known):
            raise ConfigurationError("api-keys: two keys have the same name")
        principals = [(key.hash.encode(), key.name, _principal(key)) for key in known]
        header = self.header.lower().encode()

        async def keyed(exchange: Exchange) -> Answer:
            given = exchange.asked.get(header)
            exchange.drop(header)
            if given is None:
                if self.required:
                    raise Unauthorized(f"Send an API key: {self.header}: …", headers={"WWW-Authenticate": "ApiKey"})
                return await inner(exchange)
            wanted = hashlib.sha256(given[:_LONGEST]).hexdigest().encode()
            found = None
            # All are looked at, whichever fits: the time taken tells nothing.
            for stored, name, principal in principals:
                if hmac.compare_digest(stored, wanted) and len(given) <= _LONGEST:
                    found = name, principal
            if found is None:
                raise Unauthorized("The API key is not known", headers={"WWW-Authenticate": "ApiKey"})
            exchange.key, exchange.principal = found
            return await inner(exchange)

        return keyed


def _principal(key: ApiKey) -> Principal:
    return Principal(f"key:{key.name}", frozenset(key.roles), scopes=frozenset(key.scopes))


def _read(text: str, setting: str) -> list[ApiKey]:
    try:
        document: Mapping[str, Mapping[str, Any]] = orjson.loads(text)
        return [
            ApiKey(name, entry["hash"], tuple(entry.get("roles", ())), tuple(entry.get("scopes", ())))
            for name, entry in document.items()
        ]
    except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError, DefinitionError):
        example = '{"acme": {"hash": "<sha256 of the key>", "roles": ["member"]}}'
        raise ConfigurationError(f"{setting} holds no API keys; an example: {example}") from None
