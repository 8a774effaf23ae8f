"""A system: several services that belong together, and how they run in one process.

In one process they share a bus, a registry of instances and a ring of recent traces; each keeps its own port,
database file, metrics and settings. What a service's own settings say (``BILLING_DATABASE_URL``) wins over what the
system would choose.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from microkit.auth import generate_service_keys
from microkit.bus.connect import connect
from microkit.bus.memory import MemoryBus
from microkit.bus.port import Bus
from microkit.declared import topics_of
from microkit.discovery.memory import MemoryRegistry
from microkit.errors import ConfigurationError, DefinitionError, MicrokitError
from microkit.gateway import Gateway
from microkit.instance import Instance
from microkit.redaction import redact_text
from microkit.service import Service
from microkit.settings import ServiceSettings
from microkit.telemetry import TraceRing

_LOOPBACK: Final = ("127.0.0.1", "localhost", "[::1]")
_IN_MEMORY: Final = "memory://"

Watch = Callable[[str, str], None]
"""Told a service's name and its new state: ``starting``, ``ready``, ``stopping``, ``stopped`` or ``failed``."""

_QUIET_PORTS: Final = range(15_000, 32_000)


@dataclass(frozen=True, slots=True)
class System:
    """Services that are started together.

    ``issuer`` names the service that publishes the keys of users' access tokens at ``/.well-known/jwks.json``;
    ``seed`` fills a running system with demo data and returns the credentials it made, by name; ``story`` is what
    ``microkit demo`` tells.
    """

    name: str
    services: Sequence[Service]
    issuer: str | None = None
    seed: Callable[[RunningSystem], Awaitable[Mapping[str, str]]] | None = None
    story: Callable[[Any], Awaitable[None]] | None = None

    def __post_init__(self) -> None:
        for service in self.services:
            if not isinstance(service, Service):
                raise DefinitionError(
                    f"{self.name}: a system is made of services, not {service!r:.100}: "
                    f'System("{self.name}", services=[billing, payment])'
                )
        names = [service.name for service in self.services]
        if len(names) != len(set(names)):
            raise DefinitionError(f"{self.name}: two of its services have the same name ({', '.join(names)})")
        if self.issuer is not None and self.issuer not in names:
            raise DefinitionError(f"{self.name}: the issuer {self.issuer!r} is none of its services")

    @asynccontextmanager
    async def running(
        self,
        folder: Path,
        *,
        ports: Mapping[str, int] | None = None,
        settings: Mapping[str, Mapping[str, object]] | None = None,
        bus: str = _IN_MEMORY,
        watch: Watch = lambda _service, _state: None,
    ) -> AsyncIterator[RunningSystem]:
        """Starts every service in this process; stops them when the block ends.

        ``folder`` keeps the database files and keys, so that a second start finds what the first one left. ``ports``
        and ``settings``, by service, win over everything. ``bus`` is the URL of the bus that they share.

        Raises:
            ConfigurationError: the folder cannot be written, a port is taken, a setting is wrong, the bus cannot be
                reached. Services that had been started are stopped again.
        """
        chosen = self._settings(folder, ports or {}, settings or {}, bus)
        system = RunningSystem(self.name, folder, bus=connect(bus), bus_url=redact_text(bus))
        for service in self.services:
            # All groups are known before anything is published: the first relay to start would otherwise find nobody
            # listening, and take what it sends for delivered.
            for group, listeners in service.declared.groups().items():
                system.bus.declare(group, topics_of(listeners))
            system.instances[service.name] = service.instance(
                chosen[service.name], bus=system.bus, registry=system.registry, ring=system.ring
            )
        try:
            await _reach(system)
            await _start(system.instances, watch)
            yield system
        finally:
            await _stop(system.instances, watch)
            await system.bus.close()

    def _settings(
        self, folder: Path, ports: Mapping[str, int], given: Mapping[str, Mapping[str, object]], bus: str
    ) -> dict[str, ServiceSettings]:
        private, public = _service_keys(folder, [service.name for service in self.services])
        shared_bus: dict[str, object] = {} if bus == _IN_MEMORY else {"bus_url": bus}
        overrides = {service.name: {**shared_bus, **given.get(service.name, {})} for service in self.services}
        for name, port in ports.items():
            overrides[name]["port"] = port
        shared: dict[str, object] = {"auth_audience": self.name, "auth_service_keys": public}
        if self.issuer is not None:
            issuer = next(service for service in self.services if service.name == self.issuer)
            found = issuer.settings(overrides[issuer.name])
            url = f"http://{found.host}:{found.port}"
            shared |= {"auth_issuer": url, "auth_jwks_url": f"{url}/.well-known/jwks.json"}
        chosen = {}
        for service in self.services:
            found = service.settings(overrides[service.name])
            if found.environment == "development":
                # Only on a laptop: in production no table is changed, no issuer trusted, no database chosen unasked.
                comfort = {
                    **shared,
                    "auth_service_key": private[service.name],
                    "database_url": f"sqlite+aiosqlite:///{folder / service.name}.db",
                    "migrate_on_start": True,
                    "allowed_hosts": sorted({*_LOOPBACK, found.host}),
                }
                if not any(isinstance(mount.app, Gateway) for mount in service.declared.mounts):
                    # The others are called by this machine's gateway, which says for whom. It itself has clients.
                    comfort["trusted_proxies"] = ["127.0.0.1", "::1"]
                found = service.settings(overrides[service.name], defaults=comfort)
            _check_bus(found, bus)
            chosen[service.name] = found
        return chosen


@dataclass(slots=True)
class RunningSystem:
    """The instances of a system in this process, by service name, and what they share. ``bus_url`` is without its
    password."""

    name: str
    folder: Path
    instances: dict[str, Instance] = field(default_factory=dict)
    bus: Bus = field(default_factory=MemoryBus)
    bus_url: str = _IN_MEMORY
    registry: MemoryRegistry = field(default_factory=MemoryRegistry)
    ring: TraceRing = field(default_factory=TraceRing)

    @property
    def urls(self) -> dict[str, str]:
        """Where each service listens."""
        return {name: instance.url for name, instance in self.instances.items()}


def _check_bus(settings: ServiceSettings, bus: str) -> None:
    if "bus_url" in settings.origin.places and settings.bus_url.get_secret_value() != bus:
        raise ConfigurationError(
            f"{settings.origin.prefix}BUS_URL names another bus than {redact_text(bus)}, which the services of one "
            "process share; name one for all of them (microkit up --bus URL), or run the service by itself"
        )


async def _reach(system: RunningSystem) -> None:
    try:
        await system.bus.start()
    except ConnectionError as error:
        raise ConfigurationError(
            f"The bus {system.bus_url} cannot be reached: {redact_text(str(error))}; see that it runs, and that its "
            "address and password are right"
        ) from error


async def _start(instances: Mapping[str, Instance], watch: Watch) -> None:
    async def start(name: str, instance: Instance) -> None:
        watch(name, "starting")
        try:
            await instance.start()
        except BaseException:
            watch(name, "failed")
            raise
        watch(name, "ready")

    ended = await asyncio.gather(*(start(*item) for item in instances.items()), return_exceptions=True)
    failed = {name: error for name, error in zip(instances, ended, strict=True) if isinstance(error, BaseException)}
    for name, error in failed.items():
        if isinstance(error, (MicrokitError, OSError)):
            raise ConfigurationError(f"{name} does not start: {error}") from error
        raise error


async def _stop(instances: Mapping[str, Instance], watch: Watch) -> None:
    async def stop(name: str, instance: Instance) -> None:
        await instance.stop()
        watch(name, "stopped")

    # Nobody takes up new work while all still answer: a saga's step under way may need any of its neighbours.
    for name in instances:
        watch(name, "stopping")
    await asyncio.gather(*(instance.pause() for instance in instances.values()))
    await asyncio.gather(*(stop(*item) for item in instances.items()))


def _service_keys(folder: Path, names: Sequence[str]) -> tuple[Mapping[str, str], str]:
    """The services' keys for development, made once and kept in the folder, readable by their owner only."""
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


def free_ports(count: int) -> list[int]:
    """``count`` different ports of this machine that nobody listens on, for tests.

    They lie below those that a system gives to outgoing connections and to servers that ask for any port, so nothing
    takes them before they are used.
    """
    found: list[int] = []
    for port in random.sample(_QUIET_PORTS, 1000):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise MicrokitError(f"There are no {count} free ports")
