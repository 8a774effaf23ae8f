"""Whether the service lives, is ready, has started; and how its parts are."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from microkit.errors import DefinitionError

PROBE_TIMEOUT: Final = 2.0
FRESH: Final = 1.0

Probe = Callable[[], Awaitable[Mapping[str, Any] | None]]
"""Returns details to show, or ``None``; raises where the part is down."""


class State(StrEnum):
    """``starting → ready → draining → stopped``. Only a ready service is sent requests."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class PartReport:
    """How one part was when it was last asked. ``milliseconds`` is what asking took."""

    up: bool
    critical: bool
    milliseconds: float
    details: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Part:
    probe: Probe
    critical: bool
    liveness: bool


class Health:
    """What the orchestrator is told about one service.

    A ``critical`` part that is down makes the service not ready: its requests go elsewhere. A ``liveness`` part that is
    down gets the process restarted, so make one only of what a restart mends, such as a consumer loop that stopped
    moving, and never of a database: restarting helps no database.
    """

    def __init__(self) -> None:
        self.state = State.STARTING
        self._parts: dict[str, _Part] = {}
        self._reports: dict[str, PartReport] = {}
        self._asked = float("-inf")
        self._asking: asyncio.Task[None] | None = None

    def part(self, name: str, probe: Probe, *, critical: bool = True, liveness: bool = False) -> None:
        """Adds a part. ``probe`` is given two seconds and is asked at most once a second.

        Raises:
            DefinitionError: there is a part of that name.
        """
        if name in self._parts:
            raise DefinitionError(f"there is a health part {name!r} already")
        self._parts[name] = _Part(probe, critical, liveness)

    def reset(self) -> None:
        """As new: starting, and without parts. For an instance that is started again."""
        self.state = State.STARTING
        self._parts.clear()
        self._reports = {}
        self._asked = float("-inf")

    @property
    def started(self) -> bool:
        """Whether start-up is over."""
        return self.state is not State.STARTING

    async def ready(self) -> bool:
        """Whether requests may come."""
        if self.state is not State.READY:
            return False
        reports = await self.report()
        return all(report.up for report in reports.values() if report.critical)

    async def live(self) -> bool:
        """Whether a restart would help no part."""
        reports = await self.report()
        return all(reports[name].up for name, part in self._parts.items() if part.liveness)

    async def report(self) -> dict[str, PartReport]:
        """How each part is, at most a second old."""
        if time.monotonic() - self._asked > FRESH or self._reports.keys() != self._parts.keys():
            if self._asking is None or self._asking.done():
                self._asking = asyncio.create_task(self._ask(), name="health")
            # Shielded: one impatient prober does not end the question for the others.
            await asyncio.shield(self._asking)
        return self._reports

    async def _ask(self) -> None:
        parts = dict(self._parts)
        reports = await asyncio.gather(*(_asked(part) for part in parts.values()))
        self._reports = dict(zip(parts, reports, strict=True))
        self._asked = time.monotonic()


async def _asked(part: _Part) -> PartReport:
    began = time.monotonic()
    up, details = True, {}
    try:
        async with asyncio.timeout(PROBE_TIMEOUT):
            details = dict(await part.probe() or {})
    except TimeoutError:
        up, details = False, {"error": f"no answer in {PROBE_TIMEOUT:g} s"}
    except Exception as error:  # noqa: BLE001  whatever a probe raises says that its part is down
        up, details = False, {"error": f"{type(error).__name__}: {error}"[:200]}
    return PartReport(up, part.critical, round((time.monotonic() - began) * 1000, 1), details)
