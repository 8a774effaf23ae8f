"""The last known good: what a registry said, kept while it is away or answers that there is nobody.

A registry that lost its memory, or cannot be reached, says nothing about the instances: most of them still work, so
they are still called. That is bounded: after ``max_staleness`` nothing is believed any more, and calls fail.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import re
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol
from urllib.parse import urlsplit

from microkit.discovery.changes import Changes, Latest
from microkit.discovery.metrics import DiscoveryMetrics
from microkit.discovery.pace import Pace, pause
from microkit.discovery.port import Endpoint, Standing
from microkit.errors import Unavailable
from microkit.telemetry import Telemetry

MAX_STALENESS: Final = 3600.0
"""Seconds. An outage of the registry is mended within the hour, and must not become one of everything before."""

_HOST: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,252})|[0-9A-Fa-f:.]{2,45}(?:%[A-Za-z0-9_.-]+)?")

_EMPTY: Final = "the registry answers that there is no instance"

_log = logging.getLogger(__name__)


class RegistryAway(Exception):
    """The registry did not answer, or answered with an error. ``wait`` are the seconds that it asks for, else 0."""

    def __init__(self, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait


@dataclass(frozen=True, slots=True)
class Found:
    """A registry's answer: the instances in any order, where to go on from, and when to ask again (seconds; 0 where the
    next question itself waits for a change)."""

    endpoints: Sequence[Endpoint]
    cursor: int = 0
    again: float = 0.0


class Source(Protocol):
    """One registry, as :class:`Directory` asks it."""

    async def find(self, service: str, cursor: int) -> Found:
        """The service's instances. ``cursor`` is the last answer's, 0 at first and after a failure: then it must answer
        at once.

        Raises:
            RegistryAway: no answer that can be used.
        """
        ...


class _Known:
    """What is known of one service."""

    def __init__(self) -> None:
        self.latest = Latest()
        self.heard = asyncio.Event()
        """Set by the first answer or failure."""
        self.confirmed = time.monotonic()
        self.trouble = ""

    @property
    def stale_for(self) -> float:
        return time.monotonic() - self.confirmed if self.trouble else 0.0


class Directory:
    """Resolver and watcher over a registry. Each service that is asked for is followed from then on, by one task.

    ``max_staleness`` is in seconds. A cancelled caller ends nothing: the next one finds what it began.
    """

    def __init__(
        self, source: Source, telemetry: Telemetry, *, where: str, max_staleness: float = MAX_STALENESS
    ) -> None:
        self._source = source
        self._where = where
        self._max_staleness = max_staleness
        self._metrics = DiscoveryMetrics(telemetry)
        self._services: dict[str, _Known] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._failing: set[str] = set()
        self._unusable: dict[str, set[str]] = {}
        # Services are followed on behalf of nobody: not of the request that asked first, whose deadline and trace end.
        self._context = contextvars.copy_context()
        self._closed = False

    async def resolve(self, service: str) -> Sequence[Endpoint]:
        known = self._services.get(service) or self._follow(service)
        if not known.heard.is_set():
            await known.heard.wait()
        if known.trouble:
            self._expire(service, known)
        if not known.latest.endpoints:
            reason = known.trouble or _EMPTY
            raise Unavailable(f"No instance of {service!r} is known at {self._where}: {reason}")
        return known.latest.endpoints

    def watch(self, service: str) -> AsyncIterator[Sequence[Endpoint]]:
        return Changes((self._services.get(service) or self._follow(service)).latest)

    def standings(self) -> Sequence[Standing]:
        return [
            Standing(
                service,
                len(known.latest.endpoints),
                known.stale_for,
                known.trouble,
                expired=bool(known.trouble) and not known.latest.endpoints,
            )
            for service, known in sorted(self._services.items())
        ]

    async def close(self) -> None:
        self._closed = True
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _follow(self, service: str) -> _Known:
        if self._closed:
            raise Unavailable(f"{service!r} is not looked for any more: the instance stops")
        known = self._services[service] = _Known()
        self._metrics.watch(service, lambda: len(known.latest.endpoints), lambda: known.stale_for)
        following = self._following(service, known)
        self._tasks.append(asyncio.create_task(following, name=f"discovery of {service}", context=self._context.copy()))
        return known

    async def _following(self, service: str, known: _Known) -> None:
        pace, cursor, failures = Pace(), 0, 0
        while True:
            await pace.turn()
            try:
                found = await self._source.find(service, cursor)
            except RegistryAway as away:
                failures += 1
                cursor = 0  # who knows what the registry forgot: the next question is not one that waits
                self._failed(service, known, str(away))
                await asyncio.sleep(max(pause(failures), away.wait))
            except Exception as error:  # noqa: BLE001  whatever a registry answers, the service is followed further
                failures += 1
                cursor = 0
                _log.exception("the answer of %s about %s cannot be read", self._where, service)
                self._failed(service, known, f"its answer cannot be read: {type(error).__name__}")
                await asyncio.sleep(pause(failures))
            else:
                failures, cursor = 0, found.cursor
                self._answered(service, known, found)
                await asyncio.sleep(found.again)

    def _answered(self, service: str, known: _Known, found: Found) -> None:
        if service in self._failing:
            self._failing.discard(service)
            if not self._failing:
                _log.info("%s answers again", self._where)
        endpoints = sorted(self._callable(service, found), key=lambda endpoint: (endpoint.id, endpoint.url))
        if endpoints:
            if known.trouble == _EMPTY:
                _log.info("%s knows instances of %s again", self._where, service)
            known.trouble, known.confirmed = "", time.monotonic()
            changed = known.latest.set(endpoints)
            self._metrics.answered(service, "changed" if changed else "unchanged")
        else:
            if known.trouble != _EMPTY and known.latest.endpoints:
                _log.warning(
                    "%s answers that there is no %s; the %d instances that were last known are called for %s more",
                    self._where,
                    service,
                    len(known.latest.endpoints),
                    _left(self._max_staleness - known.stale_for),
                )
            known.trouble = _EMPTY
            self._metrics.answered(service, "empty")
            self._expire(service, known)
        known.heard.set()

    def _callable(self, service: str, found: Found) -> list[Endpoint]:
        """Those that can be called at all: what a registry holds was written by others, and one entry without a port
        must not fail the calls to all."""
        wrong = {endpoint.url for endpoint in found.endpoints if not is_base_url(endpoint.url)}
        for url in sorted(wrong - self._unusable.get(service, set())):
            _log.warning("%s says that an instance of %s is at %.200r, which is no address", self._where, service, url)
        self._unusable[service] = wrong
        return [endpoint for endpoint in found.endpoints if endpoint.url not in wrong]

    def _failed(self, service: str, known: _Known, reason: str) -> None:
        if not self._failing:  # once an outage, not once a service
            _log.warning(
                "%s is away (%s); the instances that were last known are called for %s more",
                self._where,
                reason,
                _left(self._max_staleness),
            )
        self._failing.add(service)
        known.trouble = f"the registry is away: {reason}"
        self._metrics.answered(service, "failed")
        self._expire(service, known)
        known.heard.set()

    def _expire(self, service: str, known: _Known) -> None:
        if known.latest.endpoints and known.stale_for > self._max_staleness:
            _log.error(
                "%s has not confirmed the instances of %s for %s: they are believed no more, and calls fail",
                self._where,
                service,
                _left(known.stale_for),
            )
            known.latest.set(())


def is_base_url(url: str) -> bool:
    """Whether requests can be sent there: ``http://host:port`` with a port from 1 on."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return False
    return parts.scheme in {"http", "https"} and _HOST.fullmatch(host) is not None and port != 0 and not parts.username


def _left(seconds: float) -> str:
    return f"{max(seconds, 0.0):.0f} s"
