"""``microkit up``: a whole system in one process."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import uvloop
from rich.console import Console

from microkit.cli.announcement import Announcement
from microkit.cli.folder import Note, noted, sole_use
from microkit.cli.load import load_system
from microkit.cli.signals import on_signals
from microkit.console.api import api
from microkit.console.here import Here
from microkit.errors import ConfigurationError, MicrokitError
from microkit.system import RunningSystem, System
from microkit.telemetry.logs import configure
from microkit.web import Limits, Server

_HOST: Final = "127.0.0.1"
_CONSOLE_DRAIN: Final = 2.0


class Up:
    """One run of the command."""

    def __init__(  # noqa: PLR0913  the options of the command
        self,
        system: str | None,
        *,
        folder: Path,
        seed: bool,
        bus: str,
        databases: str | None,
        scale: Mapping[str, int],
        port_offset: int,
        console_port: int,
        json: bool,
    ) -> None:
        self._reference, self._system = load_system(system)
        self._folder = folder
        self._seed = seed
        self._bus = bus
        self._databases = databases
        self._scale = scale
        self._offset = port_offset
        self._console_port = console_port
        self._json = json
        # In JSON the one document is all that stdout holds, so the log goes beside it.
        self._out = Console(file=sys.stdout)
        self._log_stream = sys.stderr if json else sys.stdout

    def run(self) -> None:
        """Runs until it is told to end.

        Raises:
            ConfigurationError: something cannot be started; what had been is stopped again.
        """
        if self._seed and self._system.seed is None:
            raise ConfigurationError(f"The system {self._system.name} has no demo data: leave --seed out")
        undo = configure(self._log_stream, format="json" if self._json else "console")
        logging.getLogger("alembic").setLevel(logging.WARNING)  # that a database is new is no news
        try:
            with sole_use(self._folder):
                uvloop.run(self._main())
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None
        finally:
            undo()

    async def _main(self) -> None:
        stop = asyncio.Event()
        on_signals(stop)
        began = time.monotonic()
        async with (
            self._system.running(
                self._folder,
                ports=_ports(self._system, self._offset),
                bus=self._bus,
                databases=self._databases,
                scale=self._scale,
            ) as running,
            self._console(running) as console,
        ):
            with noted(self._folder, Note(self._reference, os.getpid(), console, running.urls)):
                seconds = time.monotonic() - began
                credentials = await self._system.seed(running) if self._seed and self._system.seed else {}
                gc.collect()
                gc.freeze()  # what start-up made stays for good: no collection need walk through it again
                self._announce(running, console, seconds, credentials)
                failure = await _first(stop, running)
            self._say("Draining: what is under way is finished, the rest goes on at the next start. ^C again: now.")
        self._say("Stopped.")
        if failure is not None:
            raise failure

    @asynccontextmanager
    async def _console(self, running: RunningSystem) -> AsyncIterator[str]:
        """The console's URL while it is served."""
        port = self._console_port + self._offset if self._console_port else 0
        server = Server(api(Here(running)), _HOST, port, limits=Limits())
        try:
            await server.start()
        except ConfigurationError as error:
            raise ConfigurationError(f"The console does not start: {error} (--console-port)") from None
        try:
            yield server.url
        finally:
            await server.stop(_CONSOLE_DRAIN)

    def _announce(self, running: RunningSystem, console: str, seconds: float, credentials: Mapping[str, str]) -> None:
        services = [
            {"name": name, "url": instance.url, "state": str(instance.health.state)}
            for name, instance in running.instances.items()
        ]
        announcement = Announcement(
            running.name, self._folder, console, running.bus_url, seconds, services,
            databases=self._databases, credentials=credentials if self._seed else None,
        )  # fmt: skip
        if self._json:
            announcement.write_json()
        else:
            announcement.print_tables(self._out)

    def _say(self, sentence: str) -> None:
        if not self._json:
            self._out.print(f"[dim]{sentence}[/]")


async def _first(stop: asyncio.Event, running: RunningSystem) -> MicrokitError | None:
    """Waits until it is told to end, or a service fails; why, if that is so."""
    told, failed = asyncio.create_task(stop.wait()), asyncio.create_task(running.failure())
    try:
        await asyncio.wait({told, failed}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        told.cancel()
        failed.cancel()
    return failed.result() if failed.done() and not failed.cancelled() else None


def _ports(system: System, offset: int) -> dict[str, int]:
    """Nothing without an offset: then each service's settings decide."""
    return {service.name: service.declared.port + offset for service in system.services} if offset else {}
