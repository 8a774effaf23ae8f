"""What a ``dns://`` URL says."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import unquote, urlsplit

from microkit.discovery.options import duration, query, whole
from microkit.errors import ConfigurationError

SERVICE: Final = "{service}"

_EXAMPLE: Final = "dns:///_http._tcp.{service}.billpay.svc.cluster.local"
_NAME: Final = re.compile(r"(?!.*\.\.)[A-Za-z0-9_.-]*\{service\}[A-Za-z0-9_.-]*")


def _port(text: str) -> int:
    port = whole(text)
    if port > 65535:
        raise ValueError("is no port")
    return port


def _scheme(text: str) -> str:
    if text not in ("http", "https"):
        raise ValueError("is neither http nor https")
    return text


_READERS: Final = {"port": _port, "scheme": _scheme, "timeout": duration}


@dataclass(frozen=True, slots=True)
class DnsOptions:
    """Where a service's records are, and what is made of them.

    ``name`` is the full domain name, with ``{service}`` in it; one that begins with ``_`` has SRV records, which hold
    the port, any other one has address records, and ``port`` is that of all services. ``server`` is the address and
    port of the name server; without one, the machine's own are asked. ``timeout`` (seconds) bounds one question.
    """

    name: str
    server: tuple[str, int] | None = None
    port: int | None = None
    scheme: Literal["http", "https"] = "http"
    timeout: float = 5.0

    @property
    def srv(self) -> bool:
        """Whether SRV records are asked for."""
        return self.name.startswith("_")

    @classmethod
    def from_url(cls, url: str) -> DnsOptions:
        """Reads ``dns://[server[:port]]/name[?port=…&scheme=…&timeout=…]``.

        Raises:
            ConfigurationError: the URL says something that is not understood.
        """
        parts = urlsplit(url)
        try:
            host, server_port = parts.hostname, parts.port
        except ValueError:
            raise ConfigurationError(f"discovery_url: the port is none; an example: {_EXAMPLE}") from None
        if host is not None:
            try:
                ipaddress.ip_address(host)
            except ValueError:
                raise ConfigurationError(
                    f"discovery_url: {host[:80]!r} is no address: a name server is asked for names and has none here; "
                    f"write dns://10.96.0.10/name, or leave it out as in {_EXAMPLE}"
                ) from None
        name = unquote(parts.path).strip("/.")
        if not _NAME.fullmatch(name):
            raise ConfigurationError(
                f"discovery_url: {name[:80]!r} is no domain name with {SERVICE} in it; an example: {_EXAMPLE}"
            )
        options = cls(name, (host, server_port or 53) if host else None, **query(parts, _READERS))
        if options.srv == (options.port is not None):
            raise ConfigurationError(
                "discovery_url: SRV records hold the port, leave port= out"
                if options.srv
                else f"discovery_url: address records hold no port; write dns:///{name}?port=8000, or the name of SRV "
                f"records, such as {_EXAMPLE}"
            )
        return options
