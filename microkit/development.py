"""What a system chooses for its services where their settings say nothing: on a laptop, and nowhere else."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from microkit.auth import generate_service_keys
from microkit.db.server import DatabaseServer
from microkit.errors import ConfigurationError
from microkit.gateway import Gateway
from microkit.redaction import redact_text
from microkit.service import Service
from microkit.settings import ServiceSettings, WrongSettings

IN_MEMORY: Final = "memory://"

_LOOPBACK: Final = ("127.0.0.1", "localhost", "[::1]")
_GATEWAY_HERE: Final = ("127.0.0.1", "::1")

Given = Mapping[str, Mapping[str, object]]
"""Settings by service that win over everything."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Where a system runs: the ``folder`` of its files, the URL of its ``bus``, the server of its ``databases``; and
    whether each service has ``admin`` endpoints."""

    folder: Path
    bus: str = IN_MEMORY
    databases: DatabaseServer | None = None
    admin: bool = False

    def database_url(self, system: str, service: str) -> str:
        """Where a service's database is when it says nothing."""
        if self.databases is not None:
            return self.databases.url(system, service)
        return f"sqlite+aiosqlite:///{self.folder / service}.db"


def chosen_settings(
    system: str, services: Sequence[Service], issuer: str | None, around: Surroundings, given: Given
) -> dict[str, ServiceSettings]:
    """The settings of every service. What its own settings say (``BILLING_DATABASE_URL``) wins over the choice.

    In production nothing is chosen: no table is changed, no issuer trusted, no database taken unasked.

    Raises:
        ConfigurationError: the folder cannot be written, or settings are wrong: those of all services are listed.
    """
    private, public = _service_keys(around.folder, [service.name for service in services])
    shared_bus: dict[str, object] = {} if around.bus == IN_MEMORY else {"bus_url": around.bus}
    overrides = {service.name: {**shared_bus, **given.get(service.name, {})} for service in services}
    own = _of_each(system, services, lambda service: service.settings(overrides[service.name]))
    shared: dict[str, object] = {"auth_audience": system, "auth_service_keys": public}
    if issuer is not None:
        url = f"http://{own[issuer].host}:{own[issuer].port}"
        shared |= {"auth_issuer": url, "auth_jwks_url": f"{url}/.well-known/jwks.json"}

    def chosen(service: Service) -> ServiceSettings:
        found = own[service.name]
        if found.environment == "development":
            comfort: dict[str, object] = {
                **shared,
                "auth_service_key": private[service.name],
                "database_url": around.database_url(system, service.name),
                "migrate_on_start": True,
                "allowed_hosts": sorted({*_LOOPBACK, found.host}),
            }
            if around.admin:
                comfort["admin_port"] = 0
            if not any(isinstance(mount.app, Gateway) for mount in service.declared.mounts):
                # The others are called by this machine's gateway, which says for whom. It itself has clients.
                comfort["trusted_proxies"] = list(_GATEWAY_HERE)
            found = service.settings(overrides[service.name], defaults=comfort)
        _check_bus(found, around.bus)
        _check_discovery(found)
        return found

    return _of_each(system, services, chosen)


def own_databases(
    server: DatabaseServer, system: str, services: Sequence[Service], settings: Mapping[str, ServiceSettings]
) -> list[str]:
    """The URLs of the databases on ``server`` that services will use."""
    urls = {service.name: server.url(system, service.name) for service in services if service.declared.stores}
    return [url for name, url in urls.items() if settings[name].database_url.get_secret_value() == url]


def _of_each(
    system: str, services: Sequence[Service], load: Callable[[Service], ServiceSettings]
) -> dict[str, ServiceSettings]:
    found: dict[str, ServiceSettings] = {}
    troubles: list[str] = []
    for service in services:
        try:
            found[service.name] = load(service)
        except WrongSettings as wrong:
            troubles += wrong.troubles
    if troubles:
        raise WrongSettings(system, troubles)
    return found


def _check_bus(settings: ServiceSettings, bus: str) -> None:
    if "bus_url" in settings.origin.places and settings.bus_url.get_secret_value() != bus:
        key = settings.origin.key("bus_url")
        trouble = (
            f"{key} names another bus than {redact_text(bus)}, which the services of one process share; name one for "
            "all of them (microkit up --redis-url URL, or --kafka URL), or run the service by itself"
        )
        raise WrongSettings(settings.origin.service, [trouble])


def _check_discovery(settings: ServiceSettings) -> None:
    if "discovery_url" in settings.origin.places and settings.discovery_url.get_secret_value() != IN_MEMORY:
        trouble = (
            f"{settings.origin.key('discovery_url')} names a registry, and the services of one process find each other "
            "in memory; leave it out, or run the service by itself"
        )
        raise WrongSettings(settings.origin.service, [trouble])


def _service_keys(folder: Path, names: Sequence[str]) -> tuple[Mapping[str, str], str]:
    """The services' keys, made once and kept in the folder, readable by their owner only."""
    path = folder / "service-keys.json"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # databases and keys are nobody else's
        if path.exists():
            private, public = _read_keys(path)
            if private.keys() == set(names):
                return private, public
        keys = generate_service_keys(names)
        unfinished = path.with_suffix(".new")
        with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump({"private": keys.private, "public": keys.public}, file)
        unfinished.replace(path)
    except OSError as error:
        raise ConfigurationError(
            f"The folder {folder} cannot be written ({error.strerror}); choose another with --folder"
        ) from error
    return keys.private, keys.public


def _read_keys(path: Path) -> tuple[Mapping[str, str], str]:
    try:
        kept = json.loads(path.read_bytes())
        private, public = kept["private"], kept["public"]
        if isinstance(private, dict) and isinstance(public, str):
            return private, public
    except (ValueError, LookupError, TypeError):
        pass
    raise ConfigurationError(f"{path} is damaged; delete it, and new keys are made")
