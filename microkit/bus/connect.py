"""From a URL to a bus."""

from __future__ import annotations

from microkit.bus.faults import from_url
from microkit.bus.port import Bus
from microkit.errors import ConfigurationError
from microkit.redaction import redact_text


def connect(url: str) -> Bus:
    """The adapter that a bus URL names; :meth:`Bus.start` connects it.

    Raises:
        ConfigurationError: the URL names no adapter of this version, or what the adapter cannot use.
        MissingExtra: the adapter's package is not installed.
    """
    scheme, there, _ = url.partition("://")
    if scheme == "memory":
        return from_url(url)
    if scheme in ("redis", "rediss"):
        from microkit.bus.redis import RedisBus  # noqa: PLC0415  an extra

        return RedisBus(url)
    if scheme in ("kafka", "kafka+ssl"):
        from microkit.bus.kafka import KafkaBus, KafkaOptions  # noqa: PLC0415  an extra

        return KafkaBus(KafkaOptions.from_url(url))
    # The rest of it may hold a password, and what stands before a colon may be a user.
    raise ConfigurationError(
        f"bus_url: {scheme + '://' if there else 'it'} names no bus; write memory://, redis://redis:6379/0, "
        "rediss://user:password@redis:6379/0, kafka://kafka:9092 or kafka+ssl://user:password@kafka:9093"
    )


async def started(bus: Bus, url: str) -> None:
    """Starts the bus at ``url``.

    Raises:
        ConfigurationError: it cannot be reached, or does not let us in.
    """
    try:
        await bus.start()
    except ConnectionError as error:
        why = redact_text(str(error)).rstrip(".")
        raise ConfigurationError(
            f"The bus {redact_text(url)} cannot be reached: {why}; see that it runs, and that its address and password "
            "are right"
        ) from error
