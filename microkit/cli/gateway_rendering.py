"""What ``microkit gateway render`` does."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from microkit.cli.load import find_service, load_system
from microkit.contract import Place
from microkit.errors import ConfigurationError
from microkit.fronting import setting_of
from microkit.gateway import Gateway
from microkit.gateway.rendering import Edge, Placement, Surroundings, read, rendered
from microkit.gateway.routes_file import read_routes
from microkit.service import Service
from microkit.settings import ServiceSettings
from microkit.system import System

_EVERYWHERE: Final = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104  what is to be replaced


@dataclass(frozen=True, slots=True)
class Rendering:
    """A configuration that is asked for: in which format, for a proxy that stands where, with which addresses,
    and whether everything is sent through the gateway."""

    format: str
    placement: Placement
    upstreams: Sequence[str]
    through: bool = False

    def write(self, service: str | None, system: str | None, *, output: Path | None, json: bool) -> None:
        """Writes it to ``output`` or stdout, and what is to be said about it to stderr.

        Raises:
            ConfigurationError: there is no gateway, it is not known where a service is, or the format cannot say it.
        """
        _, found = load_system(system)
        edge = self._edge(found, _gateway_service(found, service))
        text = rendered(self.format, edge, self.placement)
        if output is not None:
            output.write_text(text)
        if json:
            sys.stdout.write(orjson.dumps(_told(edge, text, self.format, output)).decode() + "\n")
            return
        if output is None:
            sys.stdout.write(text)
        for sentence in (*edge.notes, *_left(edge)):
            sys.stderr.write(f"{sentence}\n")

    def _edge(self, system: System, service: Service) -> Edge:
        declared, settings = service.declared, service.settings()
        gateway = _gateway_of(service)
        assert gateway is not None  # noqa: S101  it was chosen by that
        around = Surroundings(
            service.name,
            self._addresses(system, settings),
            own_paths=[*(one.path for one in declared.handlers), *(one.path for one in declared.routes)],
            headers=_headers(system),
            hosts=settings.allowed_hosts,
            trusted_proxies=settings.trusted_proxies,
            setting=setting_of(settings),
            timeout=settings.request_timeout,
            body_limit=settings.body_limit,
            through=self.through,
        )
        routes = read_routes(Path(settings.routes_file)) if settings.routes_file is not None else None
        return read(gateway, around, routes=routes)

    def _addresses(self, system: System, settings: ServiceSettings) -> dict[str, list[str]]:
        """Where services are: as the command says, else the gateway's settings, else, on a laptop, their own."""
        found: dict[str, list[str]] = {}
        if settings.environment == "development":
            found = {one.name: [_own_address(one.settings())] for one in system.services}
        found |= settings.services
        for option in self.upstreams:
            name, equals, urls = option.partition("=")
            if not equals or not name or not urls:
                raise ConfigurationError(f"--upstream {option[:80]!r}: write billing=http://10.0.0.5:3003")
            found[name] = urls.split(",")
        return found


def _gateway_service(system: System, name: str | None) -> Service:
    if name is not None:
        chosen = find_service(system, name)
        if _gateway_of(chosen) is None:
            raise ConfigurationError(f"The service {name} has no gateway: service.mount('/', Gateway([...]))")
        return chosen
    found = [one for one in system.services if _gateway_of(one) is not None]
    if len(found) != 1:
        names = ", ".join(one.name for one in found) or "none"
        raise ConfigurationError(f"Which service has the gateway? Say --service NAME; those that have one: {names}")
    return found[0]


def _gateway_of(service: Service) -> Gateway | None:
    return next((one.app for one in service.declared.mounts if isinstance(one.app, Gateway)), None)


def _own_address(settings: ServiceSettings) -> str:
    return settings.advertised_url or f"http://{_EVERYWHERE.get(settings.host, settings.host)}:{settings.port}"


def _headers(system: System) -> list[str]:
    """The names of all headers that operations of the system read."""
    operations = [operation for service in system.services for operation in service.declared.handlers]
    return sorted(
        {one.wire_name for operation in operations for one in operation.parameters if one.place is Place.HEADER}
    )


def _left(edge: Edge) -> list[str]:
    return [
        f"{one.route.title} is sent through the gateway: {'; '.join(one.because)}" for one in edge.routes if one.because
    ]


def _told(edge: Edge, text: str, format: str, output: Path | None) -> dict[str, Any]:  # noqa: A002
    return {
        "format": format,
        "output": str(output) if output is not None else None,
        "routes": len(edge.routes),
        "through_gateway": {one.route.title: list(one.because) for one in edge.routes if one.because},
        "notes": list(edge.notes),
        "text": text,
    }
