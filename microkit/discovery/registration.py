"""Keeping one instance known to a registry that forgets."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import Final, Protocol

from microkit.discovery.directory import RegistryAway
from microkit.discovery.metrics import DiscoveryMetrics
from microkit.discovery.pace import pause
from microkit.discovery.port import Endpoint

LONGEST_FAREWELL: Final = 5.0
"""Seconds that deregistering may take in all: a registry that is away must not hold up a stop."""

_log = logging.getLogger(__name__)


class Entries(Protocol):
    """What a registry must be able to do with one instance. Each raises :class:`RegistryAway` when it cannot."""

    async def put(self, service: str, endpoint: Endpoint) -> None:
        """Makes it known, in place of what is known under its id."""
        ...

    async def renew(self, service: str, endpoint: Endpoint) -> bool:
        """Says that it lives; False where the registry does not know it."""
        ...

    async def remove(self, service: str, endpoint: Endpoint) -> None:
        """Takes it out; one that is not there is no error."""
        ...


class Registration:
    """One instance's entry: put, renewed every ``every`` seconds, put again when it was lost, and removed at the end.

    All of it is done by one task, one request after the other, so that no late renewal brings back what was removed.
    """

    def __init__(
        self, entries: Entries, service: str, endpoint: Endpoint, *, every: float, where: str, metrics: DiscoveryMetrics
    ) -> None:
        self._entries = entries
        self._service = service
        self._endpoint = endpoint
        self._every = every
        self._where = where
        self._metrics = metrics
        self._tried = asyncio.Event()
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._known = False
        self._away = False

    async def start(self) -> None:
        """Returns after the first attempt, however it ended."""
        self._task = asyncio.create_task(self._keep(), name=f"registration of {self._service}")
        await self._tried.wait()

    async def stop(self) -> None:
        """Takes the instance out; a registry that is away is told of in the log."""
        task, self._task = self._task, None
        if task is None:
            return
        self._stop.set()
        try:
            async with asyncio.timeout(LONGEST_FAREWELL):
                await task
        except TimeoutError:
            _log.warning(
                "%s does not answer: %s stays registered there until its check fails", self._where, self._endpoint.id
            )

    async def _keep(self) -> None:
        failures = 0
        while not self._stop.is_set():
            try:
                await self._once()
            except RegistryAway as away:
                failures += 1
                self._failed(away)
                wait = max(pause(failures), away.wait)
            else:
                failures = 0
                wait = self._every
            self._tried.set()
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._stop.wait()
        await self._remove()

    async def _once(self) -> None:
        if self._known:
            if await self._entries.renew(self._service, self._endpoint):
                self._away = False
                return
            self._known = False
            self._metrics.registered(False)
            self._metrics.registration("lost")
            _log.warning("%s does not know %s any more; it is registered again", self._where, self._endpoint.id)
        await self._entries.put(self._service, self._endpoint)
        self._known, self._away = True, False
        self._metrics.registered(True)
        self._metrics.registration("done")
        _log.info("registered at %s as %s: %s", self._where, self._endpoint.id, self._endpoint.url)

    def _failed(self, away: RegistryAway) -> None:
        self._metrics.registration("failed")
        if not self._away:  # once an outage
            self._away = True
            _log.warning("%s cannot be told of %s (%s); it is tried again", self._where, self._endpoint.id, away)

    async def _remove(self) -> None:
        try:
            await self._entries.remove(self._service, self._endpoint)
        except RegistryAway as away:
            _log.warning(
                "%s cannot be told that %s stops (%s); its check will fail there", self._where, self._endpoint.id, away
            )
        self._metrics.registered(False)
