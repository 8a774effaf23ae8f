"""From a URL to a bus."""

from __future__ import annotations

from urllib.parse import urlsplit

from microkit.bus.memory import MemoryBus
from microkit.bus.port import Bus
from microkit.errors import ConfigurationError


def connect(url: str) -> Bus:
    """The adapter that a bus URL names; :meth:`Bus.start` connects it.

    Raises:
        ConfigurationError: the URL names no adapter of this version, or what the adapter cannot use.
        MissingExtra: the adapter's package is not installed.
    """
    scheme = urlsplit(url).scheme
    if scheme == "memory":
        return MemoryBus()
    if scheme in ("redis", "rediss"):
        from microkit.bus.redis import RedisBus  # noqa: PLC0415  an extra

        return RedisBus(url)
    if scheme == "kafka":
        from microkit.bus.kafka import KafkaBus, KafkaOptions  # noqa: PLC0415  an extra

        return KafkaBus(KafkaOptions.from_url(url))
    raise ConfigurationError(
        f"bus_url: {scheme or url!r} names no bus; write memory://, redis://redis:6379/0 or kafka://kafka:9092"
    )
