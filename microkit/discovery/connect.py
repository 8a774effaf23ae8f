"""From a URL to a way of finding services."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from microkit.discovery.directory import MAX_STALENESS
from microkit.discovery.memory import MemoryRegistry
from microkit.discovery.port import Discovery
from microkit.discovery.static import StaticResolver
from microkit.errors import ConfigurationError
from microkit.telemetry import Telemetry


def connect(
    url: str,
    telemetry: Telemetry,
    *,
    services: Mapping[str, Sequence[str]] | None = None,
    max_staleness: float = MAX_STALENESS,
) -> Discovery:
    """The adapter that a discovery URL names. Nothing is asked before it is used. ``services`` are what ``static://``
    knows; ``max_staleness`` is in seconds.

    Raises:
        ConfigurationError: the URL names no adapter of this version, or what the adapter cannot use.
        MissingExtra: the adapter's package is not installed.
    """
    scheme, there, rest = url.partition("://")
    if scheme in ("memory", "static") and there:
        if rest:
            raise ConfigurationError(f"discovery_url: {scheme}:// takes nothing behind it")
        return MemoryRegistry() if scheme == "memory" else StaticResolver(services or {})
    if scheme in ("consul", "consul+https"):
        from microkit.discovery.consul import ConsulDiscovery, ConsulOptions  # noqa: PLC0415  an extra

        return ConsulDiscovery(ConsulOptions.from_url(url), telemetry, max_staleness=max_staleness)
    if scheme == "dns":
        from microkit.discovery.dns import DnsOptions, dns_discovery  # noqa: PLC0415  an extra

        return dns_discovery(DnsOptions.from_url(url), telemetry, max_staleness=max_staleness)
    # The rest of it may hold a token, and what stands before a colon may be a user.
    raise ConfigurationError(
        f"discovery_url: {scheme + '://' if there else 'it'} names no registry; write static://, memory://, "
        "consul://127.0.0.1:8500 or dns:///_http._tcp.{service}.billpay.svc.cluster.local"
    )
