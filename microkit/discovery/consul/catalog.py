"""Asking Consul: blocking queries for the healthy instances of a service.

The rules for the index are those of https://developer.hashicorp.com/consul/api-docs/features/blocking.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Mapping, Sequence
from typing import Any, Final

from consul import ConsulException  # type: ignore[import-untyped]  # py-consul has no types

from microkit.discovery.consul.http import Client
from microkit.discovery.consul.options import ConsulOptions
from microkit.discovery.directory import Found, RegistryAway
from microkit.discovery.port import Endpoint

ANSWER_TIMEOUT: Final = 10.0
"""Seconds for an answer to a question that does not wait, and what a waiting one may take beyond its wait."""

_log = logging.getLogger(__name__)

ZONE: Final = "zone"
SCHEME: Final = "scheme"
"""Keys of a registration's Meta."""


class ConsulCatalog:
    """The :class:`~microkit.discovery.directory.Source` of a Consul agent."""

    def __init__(self, client: Client, options: ConsulOptions) -> None:
        self._client = client
        self._options = options
        # Consul's ``tag`` parameter is deprecated in favour of this.
        self._filter = " and ".join(f'"{tag}" in Service.Tags' for tag in options.tag) or None

    async def find(self, service: str, cursor: int) -> Found:
        wait = 0.0
        if cursor:
            # Jitter of our own: Consul spreads the ends of waits, not of those that all began with one event.
            wait = self._options.wait * random.uniform(0.9, 1.0)  # noqa: S311
        answer = await self._ask(service, cursor, wait)
        try:
            index, entries = int(answer[0]), answer[1] or ()
        except (TypeError, ValueError):
            raise RegistryAway(f"it answers with the index {answer[0]!r:.20}") from None
        if index < cursor:
            # It went backwards (a restored snapshot, new servers): what follows is asked from the start.
            index = 0
        elif index < 1:
            index = 1  # "it is always safe to use an index of 1"; with 0 the next question would not wait
        return Found(_endpoints(entries), cursor=index)

    async def _ask(self, service: str, cursor: int, wait: float) -> tuple[str, list[Mapping[str, Any]] | None]:
        try:
            # Consul adds up to a sixteenth to the wait.
            async with asyncio.timeout(wait * 17 / 16 + ANSWER_TIMEOUT):
                answer: tuple[str, list[Mapping[str, Any]] | None] = await self._client.health.service(
                    service,
                    index=cursor or None,
                    wait=f"{round(wait * 1000)}ms",
                    passing=True,
                    filter_expr=self._filter,
                    dc=self._options.dc,
                )
        except TimeoutError:
            raise RegistryAway("it does not answer in time") from None
        except ConsulException as error:
            raise RegistryAway(_reason(error)) from error
        return answer


def _reason(error: ConsulException) -> str:
    return f"it answers {' '.join(str(error).split())[:120] or type(error).__name__}"


def _endpoints(entries: Sequence[Mapping[str, Any]]) -> list[Endpoint]:
    """One entry that says nothing usable takes none of the others away."""
    found: list[Endpoint] = []
    for entry in entries:
        try:
            found.append(_endpoint(entry))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            _log.warning("Consul has an entry that cannot be read: %r", error)
    if entries and not found:
        raise RegistryAway("none of its entries can be read")
    return found


def _endpoint(entry: Mapping[str, Any]) -> Endpoint:
    found: Mapping[str, Any] = entry["Service"]
    meta: Mapping[str, str] = found.get("Meta") or {}
    node: Mapping[str, Any] = entry.get("Node") or {}
    # A service without an address is at its node's.
    host = found.get("Address") or node["Address"]
    weights: Mapping[str, Any] = found.get("Weights") or {}
    return Endpoint(
        url=f"{meta.get(SCHEME, 'http')}://{f'[{host}]' if ':' in host else host}:{found['Port']}",
        # Ids are unique on their agent only.
        id=f"{node.get('Node', '')}/{found['ID']}",
        zone=meta.get(ZONE, ""),
        tags=tuple(found.get("Tags") or ()),
        weight=int(weights.get("Passing", 1)),
    )
