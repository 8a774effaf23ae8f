"""Who is calling, seen through the proxies in front of us. A handler asks for it by type::

async def register(body: NewUser, client: ClientAddress) -> User: ...
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any

from microkit.errors import ConfigurationError

RawHeaders = Iterable[tuple[bytes, bytes]]

_HOST = re.compile(rb"[A-Za-z0-9._\-\[\]:%]{1,255}\Z")


@dataclass(frozen=True, slots=True)
class ClientAddress:
    """Where a request comes from: the client's ``address``, and the ``scheme`` and ``host`` it asked for.

    Behind proxies (the gateway is one) the connection is theirs: what they say about the client is believed where the
    setting ``trusted_proxies`` has their addresses. ``address`` is empty where the connection has none.
    """

    address: str
    scheme: str
    host: str


class Proxies:
    """The proxies in front of a service, or of the gateway, whose word about the client is taken.

    ``trusted`` holds addresses, networks (``10.0.0.0/8``) or ``*``.
    """

    def __init__(self, trusted: Sequence[str]) -> None:
        self._everybody = "*" in trusted
        self._networks: list[IPv4Network | IPv6Network] = []
        for entry in trusted:
            if entry == "*":
                continue
            try:
                self._networks.append(ip_network(entry, strict=False))
            except ValueError:
                raise ConfigurationError(
                    f"trusted_proxies: {entry!r} is neither an address nor a network; write 10.0.0.0/8"
                ) from None

    def client(self, peer: str, scheme: str, headers: RawHeaders) -> ClientAddress:
        """Who is calling, seen from a connection with ``peer``.

        ``X-Forwarded-For`` counts from the right: the first address that is no trusted proxy is the client; what stands
        left of it was written by the client itself and means nothing.
        """
        if not (self._everybody or self._networks) or not self._trusts(peer):
            return ClientAddress(peer, scheme, _first(headers, b"host"))
        chain = [part.strip() for value in _all(headers, b"x-forwarded-for") for part in value.split(",")]
        address = peer
        for hop in reversed(chain):
            address = _bare_address(hop) or address
            if not _bare_address(hop) or not self._trusts(address):
                break
        # Of two, the last is the proxy's own: the first may be what it let through of the client's.
        told_scheme = _last(headers, b"x-forwarded-proto").lower()
        host = _last(headers, b"x-forwarded-host") or _first(headers, b"host")
        return ClientAddress(address, told_scheme if told_scheme in ("http", "https") else scheme, host)

    def caller(self, scope: Mapping[str, Any]) -> ClientAddress:
        """Who is calling, of an ASGI request."""
        peer = scope.get("client")
        return self.client(peer[0] if peer else "", scope.get("scheme", "http"), scope["headers"])

    def _trusts(self, address: str) -> bool:
        if self._everybody:
            return True
        try:
            parsed = ip_address(address)
        except ValueError:
            return False
        return any(parsed in network for network in self._networks)


def _all(headers: RawHeaders, wanted: bytes) -> list[str]:
    return [value.decode("latin-1") for name, value in headers if name == wanted]


def _first(headers: RawHeaders, wanted: bytes) -> str:
    for name, value in headers:
        if name == wanted and _HOST.match(value):
            return value.decode("ascii")
    return ""


def _last(headers: RawHeaders, wanted: bytes) -> str:
    values = [value for name, value in headers if name == wanted]
    return values[-1].decode("ascii") if values and _HOST.match(values[-1]) else ""


def _bare_address(hop: str) -> str:
    """The address in ``1.2.3.4``, ``1.2.3.4:5678``, ``2001:db8::1`` or ``[2001:db8::1]:443``, else ``""``."""
    if hop.startswith("["):
        hop = hop[1:].partition("]")[0]
    elif hop.count(":") == 1:
        hop = hop.partition(":")[0]
    try:
        return str(ip_address(hop))
    except ValueError:
        return ""
