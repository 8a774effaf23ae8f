"""What a registry knows of an instance of several workers: one endpoint, while a worker is ready."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Final, Protocol

from microkit.declared import Declared
from microkit.discovery.own import discovery_of, own_endpoint
from microkit.discovery.port import Endpoint, Registrar
from microkit.settings import ServiceSettings
from microkit.telemetry import Telemetry
from microkit.workers.slot import Slot

_LOOK: Final = 0.25


class Instance(Protocol):
    """What is made known."""

    declared: Declared
    settings: ServiceSettings
    telemetry: Telemetry
    slots: list[Slot]
    url: str


class Known:
    """Registers the instance while one of its workers is ready, under the one URL that they share: a worker that ends
    takes nothing from the registry, and where none is ready nobody is sent."""

    def __init__(self, registrar: Registrar | None, service: str, endpoint: Endpoint, slots: Sequence[Slot]) -> None:
        self._registrar = registrar
        self._service = service
        self._endpoint = endpoint
        self._slots = slots
        self._registered = False
        self._keeping: asyncio.Task[None] | None = None

    @classmethod
    async def opened(cls, instance: Instance, owned: AsyncExitStack) -> Known:
        """As the settings say; ``owned`` closes it.

        Raises:
            ConfigurationError: the registry cannot be used.
        """
        discovery = discovery_of(instance.settings, instance.telemetry)
        owned.push_async_callback(discovery.close)
        endpoint = own_endpoint(instance.declared.name, instance.settings, instance.url)
        registrar = discovery if isinstance(discovery, Registrar) else None
        return cls(registrar, instance.declared.name, endpoint, instance.slots)

    def keep(self) -> None:
        """Begins to look."""
        if self._registrar is not None:
            self._keeping = asyncio.create_task(self._keep(self._registrar))

    async def forget(self) -> None:
        """Takes the instance out, for good."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        if self._registrar is not None and self._registered:
            self._registered = False
            await self._registrar.deregister(self._service, self._endpoint)

    async def _keep(self, registrar: Registrar) -> None:
        while True:
            ready = any(slot.ready for slot in self._slots)
            if ready and not self._registered:
                self._registered = True
                await registrar.register(self._service, self._endpoint)
            elif not ready and self._registered:
                await registrar.deregister(self._service, self._endpoint)
                self._registered = False
            await asyncio.sleep(_LOOK)
