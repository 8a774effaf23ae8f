"""What an instance tells others of itself."""

from __future__ import annotations

from urllib.parse import urlsplit

from microkit.discovery.connect import connect
from microkit.discovery.memory import MemoryRegistry
from microkit.discovery.port import Discovery, Endpoint, Registrar
from microkit.errors import ConfigurationError
from microkit.settings import ServiceSettings
from microkit.telemetry import Telemetry

_EVERYWHERE = ("0.0.0.0", "::", "[::]", "")  # noqa: S104  addresses that nobody can be sent to


def own_endpoint(service: str, settings: ServiceSettings, listening: str) -> Endpoint:
    """The endpoint of the instance that listens at the URL ``listening``."""
    url = settings.advertised_url or listening
    where = urlsplit(url)
    return Endpoint(
        url,
        # The same again after a restart at the same place: it then replaces what a killed process left behind.
        id=settings.instance_id or f"{service}-{where.hostname}-{where.port or where.scheme}".replace(":", "-"),
        zone=settings.zone or "",
        tags=tuple(settings.tags),
        weight=settings.weight,
    )


def discovery_of(settings: ServiceSettings, telemetry: Telemetry) -> Discovery:
    """What the settings name, for the instance to find others by, and to be found.

    Raises:
        ConfigurationError: it cannot be used, or does not say where others reach this instance.
        MissingExtra: the adapter's package is not installed.
    """
    discovery = connect(
        settings.discovery_url.get_secret_value(),
        telemetry,
        services=settings.services,
        max_staleness=settings.discovery_max_staleness,
    )
    if isinstance(discovery, Registrar) and not isinstance(discovery, MemoryRegistry):
        check_advertised(settings)
    return discovery


def check_advertised(settings: ServiceSettings) -> None:
    """For an instance that registers where other machines look.

    Raises:
        ConfigurationError: it listens on all addresses, and none says where it is reached.
    """
    if settings.advertised_url is None and settings.host in _EVERYWHERE:
        key, example = settings.origin.key("advertised_url"), f"http://10.0.0.5:{settings.port}"
        raise ConfigurationError(
            f"{key} is missing: listening on {settings.host} says nobody where this instance is reached; "
            f"name it as others see it, such as {example}"
        )
