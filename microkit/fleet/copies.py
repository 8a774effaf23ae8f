"""Which processes a system is, and what each is told through its environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

import orjson
from pydantic import SecretBytes, SecretStr

from microkit.errors import ConfigurationError
from microkit.servers.ports import free_ports
from microkit.service import Service
from microkit.settings import ServiceSettings
from microkit.settings.values import SecretUrl

_OVERRIDE: Final = "override"


@dataclass(frozen=True, slots=True)
class Copy:
    """One process of a service. ``number`` counts from 1; ``environment`` is what is added to ours. ``admin_url`` is
    where its admin endpoints are; empty where the service's own settings say something about them."""

    service: str
    number: int
    url: str
    admin_url: str = ""
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        """``billing-2``; a first copy is called like its service."""
        return self.service if self.number == 1 else f"{self.service}-{self.number}"


def copies_of(
    services: Sequence[Service],
    settings: Mapping[str, ServiceSettings],
    scale: Mapping[str, int],
    shared: Mapping[str, object],
) -> list[Copy]:
    """All processes of a system. Each service's first copy has the service's own port, the others free ones; every
    service is told where all copies of the others are, and what is in ``shared`` (settings by field).

    Raises:
        ConfigurationError: ``scale`` names no service of the system, or no number of copies.
    """
    names = [service.name for service in services]
    for name, number in scale.items():
        if name not in names:
            raise ConfigurationError(
                f"--scale {name}={number}: there is no service {name!r}; there are {', '.join(names)}"
            )
        if not 1 <= number <= 64:
            raise ConfigurationError(f"--scale {name}={number}: from 1 to 64 copies")
    # All at once, so that none is given twice.
    free = iter(free_ports(2 * sum(scale.get(name, 1) for name in names)))
    ports = {name: [settings[name].port, *islice(free, scale.get(name, 1) - 1)] for name in names}
    urls = {name: [f"http://{settings[name].host}:{port}" for port in ports[name]] for name in names}
    found: list[Copy] = []
    for name in names:
        told = environment_of(settings[name]) | _texts(settings[name], {**shared, "services": urls})
        for number, port in enumerate(ports[name], 1):
            own, admin_url = {settings[name].origin.key("port"): str(port)}, ""
            if settings[name].admin_port is None:
                admin_port = next(free)
                own[settings[name].origin.key("admin_port")] = str(admin_port)
                admin_url = f"http://{settings[name].admin_host}:{admin_port}"
            found.append(Copy(name, number, urls[name][number - 1], admin_url, told | own))
    return found


def environment_of(settings: ServiceSettings) -> dict[str, str]:
    """What the system has chosen for a service, as variables: all that its own environment does not say."""
    origin = settings.origin
    return _texts(settings, {name: getattr(settings, name) for name in {*origin.defaults, *origin.places}})


def _texts(settings: ServiceSettings, values: Mapping[str, Any]) -> dict[str, str]:
    """Settings as variables. What the service's own environment says stays."""
    origin = settings.origin
    return {
        origin.key(name): _text(value)
        for name, value in values.items()
        if origin.places.get(name, _OVERRIDE) == _OVERRIDE
    }


def _text(value: Any) -> str:
    if isinstance(value, SecretStr | SecretUrl):
        return value.get_secret_value()
    if isinstance(value, SecretBytes):
        return value.get_secret_value().decode()
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return orjson.dumps(value, default=str).decode()
