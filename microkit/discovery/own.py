"""What an instance tells others of itself."""

from __future__ import annotations

from urllib.parse import urlsplit

from microkit.discovery.port import Endpoint
from microkit.errors import ConfigurationError
from microkit.settings import ServiceSettings

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
