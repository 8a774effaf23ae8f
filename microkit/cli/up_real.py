"""``microkit up --real``: a whole system in many processes, on servers like those of production."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Final

from rich.console import Console
from rich.text import Text

from microkit.cli.announcement import Announcement
from microkit.cli.folder import Note, noted, server_databases
from microkit.cli.holding import DRAINING, UpOptions
from microkit.cli.load import load_system
from microkit.cli.servers_given import check_bus
from microkit.cli.signals import on_signals, unless_told
from microkit.cli.stream import LogStream
from microkit.console import fleet_api
from microkit.console.api import api
from microkit.console.fleet import FleetSeen
from microkit.errors import MissingExtra
from microkit.fleet import Fleet, Wanted
from microkit.redaction import redact_text
from microkit.telemetry import TraceRing

try:
    from microkit.console.collector import collector
except ImportError as error:
    if (error.name or "").partition(".")[0] in {"google", "opentelemetry"}:
        raise MissingExtra("up --real, whose processes send their traces,", "otlp") from error
    raise

_TRACE_DELAY: Final = "500"
"""Milliseconds that spans wait in a process: the default of five seconds is long for somebody who looks."""

_DRAIN: Final = 0.5
"""Seconds in which a process that is ending still answers who has not noticed."""


class UpReal:
    """One run of the command. Its ``bus`` is ``redis``, ``kafka`` or a broker's URL."""

    def __init__(self, system: str | None, options: UpOptions) -> None:
        self._reference, self._system = load_system(system)
        self._options = options
        self._out = Console(file=options.log_stream, soft_wrap=True)
        names = {service.name for service in self._system.services}
        self._log = LogStream(options.log_stream, names, json=options.json)

    def run(self) -> None:
        """Runs until it is told to end.

        Raises:
            ConfigurationError: something cannot be started; what had been is ended again.
        """
        self._options.hold(self._system, self._main)

    async def _main(self, lock: int) -> None:
        options = self._options
        stop = asyncio.Event()
        on_signals(stop)
        began = time.monotonic()
        async with AsyncExitStack() as owned:
            seen = FleetSeen(self._system.name, TraceRing())
            app = api(seen, collector(seen.ring), *fleet_api.routes(lambda: seen.fleet))
            console = await owned.enter_async_context(options.console(app))
            if "://" in options.bus:
                await check_bus(options.bus)
            self._say("Starting the servers and the services: a process each.")
            os.environ.setdefault("OTEL_BSP_SCHEDULE_DELAY", _TRACE_DELAY)
            running = Fleet.running(self._system, self._reference, self._wanted(console, lock), self._log.line)
            fleet = await unless_told(stop, owned.enter_async_context(running))
            if fleet is None:
                self._say("Stopped before all was started.")
                return
            await owned.enter_async_context(seen.following(fleet))
            admin = {child.copy.name: child.copy.admin_url for child in fleet.children if child.copy.admin_url}
            databases = server_databases(fleet.settings)
            note = Note(self._reference, os.getpid(), console, fleet.urls, admin, databases)
            owned.enter_context(noted(options.folder, note))
            seconds = time.monotonic() - began
            seed = self._system.seed if options.seed else None
            credentials = await unless_told(stop, seed(seen)) if seed is not None else {}
            if credentials is not None:
                self._announce(fleet, console, seconds, credentials)
            await stop.wait()
            self._say(DRAINING)
        self._say("Stopped.")

    def _wanted(self, console: str, lock: int) -> Wanted:
        options = self._options
        kind = options.bus if options.bus in ("redis", "kafka") else None
        return Wanted(
            options.folder,
            bus="kafka" if kind == "kafka" else "redis",
            bus_url=None if kind else options.bus,
            databases=options.databases,
            scale=options.scale,
            inherited=(lock,),
            given={name: {"port": port} for name, port in options.ports(self._system).items()},
            shared={
                "trace_exporter": "otlp",
                "otlp_endpoint": console,
                "drain_delay": _DRAIN,
                "log_format": "json" if options.json else "console",
            },
        )

    def _announce(self, fleet: Fleet, console: str, seconds: float, credentials: Mapping[str, str]) -> None:
        options = self._options
        services = [{"name": child.copy.name, "url": child.copy.url, "state": "ready"} for child in fleet.children]
        announcement = Announcement(
            fleet.name, options.folder, console, redact_text(fleet.bus_url), seconds, services,
            databases=options.databases or fleet.databases_url, credentials=credentials if options.seed else None,
        )  # fmt: skip
        if options.json:
            announcement.write_json()
        else:
            announcement.print_tables(self._out)

    def _say(self, sentence: str) -> None:
        if not self._options.json:
            self._out.print(Text(sentence, style="dim"))
