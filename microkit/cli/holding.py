"""What both forms of ``microkit up`` have in common: their options, one process a folder, and the console."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TextIO

import uvloop
from starlette.types import ASGIApp

from microkit.cli.folder import sole_use
from microkit.errors import ConfigurationError
from microkit.system import System
from microkit.telemetry.logs import configure
from microkit.web import Limits, Server

_HOST: Final = "127.0.0.1"
_CONSOLE_DRAIN: Final = 2.0

DRAINING: Final = "Draining: what is under way is finished, the rest goes on at the next start. ^C again: now."


@dataclass(frozen=True, slots=True)
class UpOptions:
    """``bus`` and ``databases`` are URLs, the bus also ``redis`` or ``kafka`` for one that is to be started; ``scale``
    is how many copies a service has, by name."""

    folder: Path
    seed: bool
    bus: str
    databases: str | None
    scale: Mapping[str, int]
    port_offset: int
    console_port: int
    json: bool

    @property
    def log_stream(self) -> TextIO:
        """In JSON the one document is all that stdout holds, so the log goes beside it."""
        return sys.stderr if self.json else sys.stdout

    def ports(self, system: System) -> dict[str, int]:
        """Nothing without an offset: then each service's settings decide."""
        offset = self.port_offset
        return {service.name: service.declared.port + offset for service in system.services} if offset else {}

    def hold(self, system: System, main: Callable[[int], Awaitable[None]]) -> None:
        """Runs ``main`` with the folder for itself until it ends. ``main`` is told the descriptor of the folder's lock.

        Raises:
            ConfigurationError: something cannot be started; what had been is stopped again.
        """
        if self.seed and system.seed is None:
            raise ConfigurationError(f"The system {system.name} has no demo data: leave --seed out")

        async def run(lock: int) -> None:
            await main(lock)

        undo = configure(self.log_stream, format="json" if self.json else "console")
        logging.getLogger("alembic").setLevel(logging.WARNING)  # that a database is new is no news
        try:
            with sole_use(self.folder) as lock:
                uvloop.run(run(lock))
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None
        finally:
            undo()

    @asynccontextmanager
    async def console(self, app: ASGIApp) -> AsyncIterator[str]:
        """The console's URL while it is served."""
        port = self.console_port + self.port_offset if self.console_port else 0
        server = Server(app, _HOST, port, limits=Limits())
        try:
            await server.start()
        except ConfigurationError as error:
            raise ConfigurationError(f"The console does not start: {error} (--console-port)") from None
        try:
            yield server.url
        finally:
            await server.stop(_CONSOLE_DRAIN)
