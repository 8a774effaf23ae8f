"""``dns://``: SRV or address records, as Kubernetes gives them for headless services. To import this without dnspython
raises ``MissingExtra``."""

from __future__ import annotations

from importlib import import_module

from microkit.errors import MissingExtra

try:
    import_module("dns")
except ImportError as error:
    if error.name == "dns":
        raise MissingExtra("dns://", "dns") from error
    raise

from microkit.discovery.dns.options import DnsOptions
from microkit.discovery.dns.records import DnsRecords, dns_discovery

__all__ = ["DnsOptions", "DnsRecords", "dns_discovery"]
