"""``microkit up``: a whole system in one process."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping

from rich.console import Console

from microkit.cli.announcement import Announcement
from microkit.cli.folder import Note, noted, server_databases
from microkit.cli.holding import DRAINING, UpOptions
from microkit.cli.load import load_system
from microkit.cli.servers_given import MEMORY, check_bus
from microkit.cli.signals import on_signals
from microkit.cli.steady import settle
from microkit.console.api import api
from microkit.console.here import Here
from microkit.errors import MicrokitError
from microkit.system import RunningSystem


class Up:
    """One run of the command."""

    def __init__(self, system: str | None, options: UpOptions) -> None:
        self._reference, self._system = load_system(system)
        self._options = options
        self._out = Console()

    def run(self) -> None:
        """Runs until it is told to end.

        Raises:
            ConfigurationError: something cannot be started; what had been is stopped again.
            MicrokitError: a service cannot go on.
        """
        self._options.hold(self._system, self._main)

    async def _main(self, _: int) -> None:
        options = self._options
        stop = asyncio.Event()
        on_signals(stop)
        began = time.monotonic()
        if not options.bus.startswith(MEMORY):
            await check_bus(options.bus)
        async with (
            self._system.running(
                options.folder,
                ports=options.ports(self._system),
                bus=options.bus,
                databases=options.databases,
                scale=options.scale,
                admin=True,
            ) as running,
            options.console(api(Here(running))) as console,
        ):
            admin = {name: one.admin_url for name, one in running.instances.items() if one.admin_url is not None}
            databases = server_databases({name: one.settings for name, one in running.instances.items()})
            with noted(options.folder, Note(self._reference, os.getpid(), console, running.urls, admin, databases)):
                seconds = time.monotonic() - began
                credentials = await self._system.seed(running) if options.seed and self._system.seed else {}
                settle()
                self._announce(running, console, seconds, credentials)
                failure = await _first(stop, running)
            self._say(DRAINING)
        self._say("Stopped.")
        if failure is not None:
            raise failure

    def _announce(self, running: RunningSystem, console: str, seconds: float, credentials: Mapping[str, str]) -> None:
        services = [
            {"name": name, "url": instance.url, "state": str(instance.health.state)}
            for name, instance in running.instances.items()
        ]
        announcement = Announcement(
            running.name, self._options.folder, console, running.bus_url, seconds, services,
            databases=self._options.databases, credentials=credentials if self._options.seed else None,
        )  # fmt: skip
        if self._options.json:
            announcement.write_json()
        else:
            announcement.print_tables(self._out)

    def _say(self, sentence: str) -> None:
        if not self._options.json:
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
