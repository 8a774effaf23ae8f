"""``microkit up --real``: a whole system in many processes, on servers like those of production."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import uvloop
from rich.console import Console
from rich.text import Text

from microkit.cli.announcement import Announcement
from microkit.cli.folder import Note, noted, sole_use
from microkit.cli.load import load_system
from microkit.cli.signals import on_signals
from microkit.console import fleet_api
from microkit.console.api import api
from microkit.console.collector import collector
from microkit.console.fleet import FleetSeen
from microkit.errors import ConfigurationError
from microkit.fleet import Fleet, Wanted
from microkit.redaction import redact_text
from microkit.telemetry import TraceRing
from microkit.telemetry.logs import configure
from microkit.web import Limits, Server

_HOST: Final = "127.0.0.1"
_CONSOLE_DRAIN: Final = 2.0
_TRACE_DELAY: Final = "500"
"""Milliseconds that spans wait in a process: the default of five seconds is long for somebody who looks."""


class UpReal:
    """One run of the command. ``bus`` is ``redis``, ``kafka`` or a broker's URL; ``databases`` a server's URL."""

    def __init__(
        self,
        system: str | None,
        *,
        folder: Path,
        seed: bool,
        bus: str,
        databases: str | None,
        scale: Mapping[str, int],
        console_port: int,
        json: bool,
    ) -> None:
        self._reference, self._system = load_system(system)
        self._folder = folder
        self._seed = seed
        self._bus = bus
        self._databases = databases
        self._scale = scale
        self._console_port = console_port
        self._json = json
        self._out = Console(file=sys.stderr if json else sys.stdout, soft_wrap=True)

    def run(self) -> None:
        """Runs until it is told to end.

        Raises:
            ConfigurationError: something cannot be started; what had been is ended again.
        """
        if self._seed and self._system.seed is None:
            raise ConfigurationError(f"The system {self._system.name} has no demo data: leave --seed out")
        undo = configure(sys.stderr if self._json else sys.stdout, format="json" if self._json else "console")
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
        async with AsyncExitStack() as owned:
            ring = TraceRing()
            seen = FleetSeen(self._system.name, ring)
            console = await owned.enter_async_context(self._console(seen))
            self._say("Starting the servers and the services: a process each.")
            os.environ.setdefault("OTEL_BSP_SCHEDULE_DELAY", _TRACE_DELAY)
            fleet = await owned.enter_async_context(
                Fleet.running(self._system, self._reference, self._wanted(console), self._line)
            )
            await owned.enter_async_context(seen.following(fleet))
            note = Note(self._reference, os.getpid(), console, fleet.urls)
            owned.enter_context(noted(self._folder, note))
            seconds = time.monotonic() - began
            credentials = await self._system.seed(seen) if self._seed and self._system.seed else {}
            self._announce(fleet, console, seconds, credentials)
            await stop.wait()
            self._say("Draining: what is under way is finished, the rest goes on at the next start. ^C again: now.")
        self._say("Stopped.")

    def _wanted(self, console: str) -> Wanted:
        shared: dict[str, object] = {
            "trace_exporter": "otlp",
            "otlp_endpoint": console,
            "log_format": "json" if self._json else "console",
        }
        kind, url = (self._bus, None) if self._bus in ("redis", "kafka") else ("redis", self._bus)
        return Wanted(
            self._folder,
            bus="kafka" if kind == "kafka" else "redis",
            bus_url=url,
            databases=self._databases,
            scale=self._scale,
            shared=shared,
        )

    @asynccontextmanager
    async def _console(self, seen: FleetSeen) -> AsyncIterator[str]:
        """The console's URL while it is served."""
        app = api(seen, collector(seen.ring), *fleet_api.routes(lambda: seen.fleet))
        server = Server(app, _HOST, self._console_port, limits=Limits())
        try:
            await server.start()
        except ConfigurationError as error:
            raise ConfigurationError(f"The console does not start: {error} (--console-port)") from None
        try:
            yield server.url
        finally:
            await server.stop(_CONSOLE_DRAIN)

    def _announce(self, fleet: Fleet, console: str, seconds: float, credentials: Mapping[str, str]) -> None:
        services = [{"name": child.copy.name, "url": child.copy.url, "state": "ready"} for child in fleet.children]
        any_settings: Any = next(iter(fleet.settings.values()))
        announcement = Announcement(
            fleet.name,
            self._folder,
            console,
            redact_text(any_settings.bus_url.get_secret_value()),
            seconds,
            services,
            databases=fleet.databases_url,
            credentials=credentials if self._seed else None,
        )
        if self._json:
            announcement.write_json()
        else:
            announcement.print_tables(self._out)

    def _line(self, name: str, line: str) -> None:
        """One line of a process, as it came; those of second copies are told apart."""
        stream = sys.stderr if self._json else sys.stdout
        stream.write(f"{line}\n" if "." not in name else f"{name}: {line}\n")
        stream.flush()

    def _say(self, sentence: str) -> None:
        if not self._json:
            self._out.print(Text(sentence, style="dim"))
