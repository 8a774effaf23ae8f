"""``microkit asyncapi``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from microkit.asyncapi import document, server
from microkit.cli.load import find_service, load_system
from microkit.service import Service


def write(service: str | None, system: str | None, *, servers: bool, yaml: bool) -> None:
    """Prints the document of a service, or of the whole system.

    Raises:
        ConfigurationError: there is no such service; with ``servers``: a setting is missing or wrong.
    """
    _, found = load_system(system)
    chosen = [find_service(found, service)] if service is not None else list(found.services)
    title, version = (
        (chosen[0].declared.title, chosen[0].declared.version) if service is not None else (found.name, "0")
    )
    written = document(
        [one.declared for one in chosen],
        title=title,
        version=version,
        servers=_servers(chosen) if servers else None,
    )
    text = json.dumps(written, indent=2, ensure_ascii=False) + "\n"
    sys.stdout.write(_yaml(text) if yaml else text)


def _servers(services: Sequence[Service]) -> dict[str, Any]:
    """Each broker once: under ``bus``, or under the name of a service where they have several."""
    by_name: dict[str, Any] = {}
    for service in services:
        found = server(service.settings().bus_url.get_secret_value()) if service.declared.stores else None
        if found is not None and found not in by_name.values():
            by_name[service.name if by_name else "bus"] = found
    return by_name


def _yaml(text: str) -> str:
    import yaml  # noqa: PLC0415  only where it is asked for

    written: str = yaml.safe_dump(json.loads(text), sort_keys=False, allow_unicode=True, width=100)
    return written
