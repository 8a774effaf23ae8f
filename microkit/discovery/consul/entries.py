"""Telling Consul: the registration of one instance with the local agent, and its check."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from consul import ConsulException  # type: ignore[import-untyped]  # py-consul has no types

from microkit.discovery.consul.catalog import SCHEME, ZONE
from microkit.discovery.consul.http import Client
from microkit.discovery.consul.options import ConsulOptions
from microkit.discovery.directory import RegistryAway
from microkit.discovery.port import Endpoint

REQUEST_TIMEOUT: Final = 4.0
"""Seconds."""

_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]+")

T = TypeVar("T")


class ConsulEntries:
    """The :class:`~microkit.discovery.registration.Entries` of a Consul agent."""

    def __init__(self, client: Client, options: ConsulOptions) -> None:
        self._agent = client.agent
        self._options = options

    async def put(self, service: str, endpoint: Endpoint) -> None:
        address = urlsplit(endpoint.url)
        port = address.port or (443 if address.scheme == "https" else 80)
        meta = {SCHEME: address.scheme, **({ZONE: endpoint.zone} if endpoint.zone else {})}
        await _within(
            self._agent.service.register(
                service,
                service_id=_id(service, endpoint),
                address=address.hostname,
                port=port,
                tags=list(endpoint.tags),
                meta=meta,
                # Consul takes no weight of 0 for one that passes.
                weights={"Passing": max(endpoint.weight, 1), "Warning": 1},
                check=self._check(service, endpoint),
                replace_existing_checks=True,
            )
        )

    async def renew(self, service: str, endpoint: Endpoint) -> bool:
        if self._options.check == "http":
            # The agent asks by itself; that it still knows whom to ask is all there is to see to.
            return await _within(self._agent.service_definition(_id(service, endpoint))) is not None
        try:
            return bool(await _within(self._agent.check.ttl_pass(_check_id(service, endpoint))))
        except RegistryAway as away:
            # Agents before 1.11 answer 500 to a check that they do not know.
            if "does not have associated TTL" in str(away):
                return False
            raise

    async def remove(self, service: str, endpoint: Endpoint) -> None:
        await _within(self._agent.service.deregister(_id(service, endpoint)))

    def _check(self, service: str, endpoint: Endpoint) -> dict[str, Any]:
        options = self._options
        check: dict[str, Any] = {
            "CheckID": _check_id(service, endpoint),
            "Name": f"{endpoint.id} answers",
            # It is registered because it listens: without this it would be critical until the first check.
            "Status": "passing",
            "DeregisterCriticalServiceAfter": f"{options.deregister_after:g}s",
        }
        if options.check == "http":
            ready = f"{endpoint.url}/health/ready"
            return {**check, "HTTP": ready, "Interval": f"{options.interval:g}s", "Timeout": f"{REQUEST_TIMEOUT:g}s"}
        return {**check, "TTL": f"{options.ttl:g}s"}


def _id(service: str, endpoint: Endpoint) -> str:
    """Unique among all services of the agent, and as it may stand in the paths of requests: an id may be a URL."""
    own = _UNSAFE.sub("-", endpoint.id)
    return own if own.startswith(service) else f"{service}-{own}"


def _check_id(service: str, endpoint: Endpoint) -> str:
    return f"service:{_id(service, endpoint)}"


async def _within(asked: Awaitable[T]) -> T:
    try:
        async with asyncio.timeout(REQUEST_TIMEOUT):
            return await asked
    except TimeoutError:
        raise RegistryAway("it does not answer in time") from None
    except ConsulException as error:
        raise RegistryAway(f"it answers {' '.join(str(error).split())[:120]}") from error
