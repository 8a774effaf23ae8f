"""What a worker is told by the one that started it, and how it reaches it."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp

from microkit.errors import ConfigurationError, Unavailable
from microkit.placement import Placement
from microkit.workers.asking import PATIENCE, Asked, session_at

_VARIABLE: Final = "MICROKIT_WORKER"
_BACKLOG: Final = 64

LAST_WORDS: Final = "/last-words/"
METRICS: Final = "/metrics"
READY: Final = "/health/ready"


@dataclass(frozen=True, slots=True)
class Place:
    """``process`` tells it from every other worker before and after it. ``descriptor`` is the socket on which they all
    accept, ``admin`` that of its own admin endpoints; ``supervisor`` is where the supervisor is asked."""

    number: int
    process: str
    descriptor: int
    admin: int
    supervisor: Path

    def environment(self) -> dict[str, str]:
        """As the worker is told it."""
        told = (str(self.number), self.process, str(self.descriptor), str(self.admin), str(self.supervisor))
        return {_VARIABLE: ",".join(told)}

    async def metrics(self) -> bytes:
        """Of all workers.

        Raises:
            Unavailable: the supervisor does not answer.
        """
        answer = await self._ask("GET", METRICS)
        if answer is None or answer.status != 200:
            raise Unavailable("The metrics of all workers cannot be had: the process that adds them up does not answer")
        return answer.body

    async def ready(self) -> bool:
        """Whether one of the workers is."""
        answer = await self._ask("GET", READY)
        return answer is not None and answer.status == 200

    async def last_words(self, text: bytes) -> None:
        """Leaves the last count with the supervisor, if that is still there."""
        await self._ask("POST", f"{LAST_WORDS}{self.process}", text)

    async def _ask(self, method: str, path: str, body: bytes | None = None) -> Asked | None:
        with suppress(aiohttp.ClientError, TimeoutError, OSError):
            async with (
                session_at(self.supervisor, PATIENCE) as session,
                session.request(method, path, data=body) as response,
            ):
                return Asked(response.status, await response.read())
        return None


def placed() -> Placement | None:
    """The place of this process among workers; ``None`` where it is none. What it starts itself is none."""
    told = os.environ.pop(_VARIABLE, None)
    if told is None:
        return None
    try:
        number, process, descriptor, admin, supervisor = told.split(",", 4)
        place = Place(int(number), process, int(descriptor), int(admin), Path(supervisor))
        listener, own = socket.socket(fileno=place.descriptor), socket.socket(fileno=place.admin)
    except (ValueError, OSError):
        raise ConfigurationError(
            f"{_VARIABLE} is set by `microkit run` for the workers that it starts, and by nobody else: unset it"
        ) from None
    for inherited in (listener, own):
        inherited.setblocking(False)
        os.set_inheritable(inherited.fileno(), False)
    return Placement(place.number, listener, own, place.metrics, place.last_words, place.ready)


def admin_socket(path: Path) -> socket.socket:
    """A socket that listens at ``path``."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.bind(str(path))
        made.listen(_BACKLOG)
        made.setblocking(False)
    except OSError:
        made.close()
        raise
    return made
