"""``consul://``: a Consul agent. To import this without py-consul raises ``MissingExtra``."""

from __future__ import annotations

from importlib import import_module

from microkit.errors import MissingExtra

try:
    import_module("consul")
except ImportError as error:
    if error.name == "consul":
        raise MissingExtra("consul://", "consul") from error
    raise

from microkit.discovery.consul.discovery import ConsulDiscovery
from microkit.discovery.consul.options import ConsulOptions

__all__ = ["ConsulDiscovery", "ConsulOptions"]
