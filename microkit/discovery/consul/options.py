"""What a ``consul://`` URL says."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final, Literal
from urllib.parse import unquote, urlsplit

from microkit.discovery.options import duration, query
from microkit.errors import ConfigurationError

SHORTEST_DEREGISTER_AFTER: Final = 60.0
"""Seconds: Consul takes no less (`DeregisterCriticalServiceAfter`, "the minimum timeout is 1 minute")."""

LONGEST_WAIT: Final = 600.0
"""Seconds: Consul holds no blocking query longer."""

_TAG: Final = re.compile(r"[A-Za-z0-9._=:/-]+")
_EXAMPLE: Final = "consul://127.0.0.1:8500?check=ttl&ttl=15s"


def _word(text: str) -> str:
    if not text:
        raise ValueError("is empty")
    return text


def _tag(text: str) -> list[str]:
    if not _TAG.fullmatch(text):
        raise ValueError("is no tag: letters, digits and . _ - = : / are")
    return [text]


def _check(text: str) -> str:
    if text not in ("ttl", "http"):
        raise ValueError("is neither ttl nor http")
    return text


_READERS: Final = {
    "check": _check,
    "ttl": duration,
    "interval": duration,
    "deregister_after": duration,
    "wait": duration,
    "dc": _word,
    "tag": _tag,
    "ca": _word,
}


@dataclass(frozen=True, slots=True)
class ConsulOptions:
    """One agent and how it is used; durations in seconds.

    ``check`` says how the agent learns that an instance lives: ``ttl``, the instance says so every third of ``ttl``; or
    ``http``, the agent asks its ``/health/ready`` every ``interval``. After ``deregister_after`` in a critical state
    the agent forgets the instance. ``wait`` bounds one blocking query. Only instances with every ``tag`` are found.
    ``ca`` is the file of the certificates that the agent's is checked against, for ``consul+https``.
    """

    host: str = "127.0.0.1"
    port: int = 8500
    scheme: Literal["http", "https"] = "http"
    token: str | None = field(default=None, repr=False)
    check: Literal["ttl", "http"] = "ttl"
    ttl: float = 15.0
    interval: float = 10.0
    deregister_after: float = 60.0
    wait: float = 60.0
    dc: str | None = None
    tag: tuple[str, ...] = ()
    ca: str | None = None

    @classmethod
    def from_url(cls, url: str) -> ConsulOptions:
        """Reads ``consul://[:token@]host[:port][?name=value&…]``, or the same with ``consul+https://``.

        Raises:
            ConfigurationError: the URL says something that is not understood.
        """
        parts = urlsplit(url)
        try:
            host, port = parts.hostname, parts.port
        except ValueError:
            raise ConfigurationError(f"discovery_url: the port is none; an example: {_EXAMPLE}") from None
        if not host or parts.path.strip("/") or parts.fragment:
            raise ConfigurationError(f"discovery_url: consul:// takes a host and no path; an example: {_EXAMPLE}")
        if parts.username:
            raise ConfigurationError("discovery_url: Consul has tokens and no users; write consul://:token@host:8500")
        given = query(parts, _READERS)
        options = cls(
            host=host,
            port=port or 8500,
            scheme="https" if parts.scheme == "consul+https" else "http",
            token=unquote(parts.password) if parts.password else None,
            **{**given, "tag": tuple(given.get("tag", ()))},
        )
        options.validate()
        return options

    def validate(self) -> None:
        """Raises ConfigurationError where a duration is none that Consul takes."""
        if self.deregister_after < SHORTEST_DEREGISTER_AFTER:
            raise ConfigurationError(
                f"discovery_url: deregister_after={self.deregister_after:g}s is shorter than the minute that Consul "
                "takes at least; write deregister_after=1m"
            )
        if not 1 <= self.wait <= LONGEST_WAIT:
            raise ConfigurationError("discovery_url: wait is between 1s and 10m, as Consul has it")
        for name in ("ttl", "interval"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"discovery_url: {name} is a second at least")
        if self.ca is not None and self.scheme == "http":
            raise ConfigurationError("discovery_url: ca is for consul+https://")
