"""Looks after the workers of one instance: as many processes as the settings say, on one port."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Final, Self

from microkit.declared import Declared
from microkit.errors import ConfigurationError, MicrokitError
from microkit.settings import ServiceSettings
from microkit.settings.values import is_loopback
from microkit.telemetry import Telemetry
from microkit.web import Server
from microkit.web.server import listening, reached_at
from microkit.workers import process
from microkit.workers.admin import admin_app, app_of_workers
from microkit.workers.folder import socket_folder
from microkit.workers.known import Known
from microkit.workers.merging import Whole
from microkit.workers.place import admin_socket
from microkit.workers.slot import NOT_STARTED, Slot, how_ended

_DRAIN: Final = 1.0


class Supervisor:
    """Runs ``command`` in each worker, which finds its place with :func:`~microkit.workers.place.placed`.

    Start order: the port, the admin endpoints, the first worker (which may bring the database up to date), all others,
    the registry. It ends in the reverse order; what does not drain within the service's own settings is killed.
    """

    def __init__(self, declared: Declared, settings: ServiceSettings, command: Sequence[str]) -> None:
        check(declared, settings)
        self.declared = declared
        self.settings = settings
        self.began = datetime.now(UTC)
        self.telemetry = Telemetry(declared.name, exporter="none", log_level=settings.log_level)
        self.whole = Whole()
        self.slots: list[Slot] = []
        self.url = ""
        self.admin_url: str | None = None
        self.stopping = False
        self.level: str | None = None
        """The log level that workers were set to while they ran, which one that is started again is to have, too."""
        self._command = command
        self._names = count(1)
        self._owned = AsyncExitStack()
        self._listener: socket.socket | None = None
        self._folder = Path()
        self._gathering = asyncio.Lock()
        self._next: asyncio.Task[bytes] | None = None
        self._gathers: set[asyncio.Task[bytes]] = set()
        self._rolling: asyncio.Task[None] | None = None
        self._roll_again = False
        self._filled = False
        self._known: Known | None = None
        self._restarts = self.telemetry.metrics.counter(
            "microkit_worker_restarts_total", "Workers that had ended unasked and were started again."
        )()
        self.telemetry.metrics.gauge("microkit_workers", "Workers that are ready.")().set_function(
            lambda: sum(slot.ready for slot in self.slots)
        )

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Returns when every worker is ready.

        Raises:
            ConfigurationError: the port is taken, or a worker does not start; what had been started is ended again.
        """
        settings = self.settings
        try:
            self._listener = listening(settings.host, settings.port)
            self._owned.callback(self._listener.close)
            self.url = reached_at(settings.host, self._listener.getsockname()[1])
            self._folder = self._owned.enter_context(socket_folder())
            await self._open_admin()
            self._known = await Known.opened(self, self._owned)
            self.slots += [self._slot(number) for number in range(1, settings.workers + 1)]
            # The first alone: it may migrate, and a mistake in the settings is told once.
            await self._fill(self.slots[:1])
            await self._fill(self.slots[1:])
            self._known.keep()
            self._filled = True
            if self._roll_again:
                self.roll()
        except BaseException:
            await self._end_at_once()
            raise

    def roll(self) -> None:
        """Puts a new worker in the place of each, one after the other, none fewer at work meanwhile. A new one reads
        code and settings anew; if the first does not start, the old ones stay. While they start, or are being replaced
        already, it is done afterwards; while they end, not at all."""
        if self.stopping:
            return
        if not self._filled or (self._rolling is not None and not self._rolling.done()):
            self._roll_again = True
        else:
            self._rolling = asyncio.create_task(self._roll())

    async def stop(self) -> None:
        """Has all workers drain; returns when all have ended. Cancelled, it ends them at once."""
        self.stopping = True
        for slot in self.slots:
            slot.stay_empty()  # whoever else has told a worker to end, it is not started again
        try:
            if self._known is not None:
                await self._known.forget()
            for slot in self.slots:
                slot.end()
            if self._listener is not None:
                self._listener.close()  # so that the port refuses as soon as no worker accepts any more
            await asyncio.gather(*(slot.ended() for slot in self.slots))
            if self._rolling is not None:
                await asyncio.gather(self._rolling, return_exceptions=True)
        finally:
            await self._end_at_once()

    async def gather(self) -> bytes:
        """The metrics of all workers, and of those that have ended, as Prometheus' text."""
        if self._next is None:  # those that ask before it begins share one
            self._next = asyncio.create_task(self._gathered())
            self._gathers.add(self._next)
            self._next.add_done_callback(self._gathers.discard)
        return await asyncio.shield(self._next)

    async def _gathered(self) -> bytes:
        async with self._gathering:  # what is asked first is also taken first
            self._next = None
            await asyncio.gather(*(slot.look() for slot in self.slots))
            self.whole.told("supervisor", self.telemetry.exposition().decode(), worker=None)
            return self.whole.exposition()

    async def _fill(self, slots: Sequence[Slot]) -> None:
        try:
            codes = await asyncio.gather(*(slot.fill() for slot in slots))
        except NOT_STARTED as error:
            raise ConfigurationError(
                f"{self.declared.name} does not start: no worker can be started ({error})"
            ) from None
        for slot, code in zip(slots, codes, strict=True):
            if code is not None:
                raise ConfigurationError(
                    f"{self.declared.name} does not start: worker {slot.number} {how_ended(code)}"
                    + (", and has said why" if code >= 0 else ": by somebody else, or because there was no memory left")
                )

    async def _roll(self) -> None:
        again = True
        while again and not self.stopping:
            self._roll_again = False
            level, self.level = self.level, None  # the settings are read anew
            if await self._all_replaced():
                self.telemetry.logger.info("all workers were replaced")
            elif self.level is None:
                self.level = level
            again = self._roll_again

    async def _all_replaced(self) -> bool:
        for slot in self.slots:
            try:
                replaced = not self.stopping and await slot.replace()
            except NOT_STARTED as error:
                self.telemetry.logger.warning("a new worker cannot be started (%s): the old ones stay", error)
                return False
            if not replaced:
                if not self.stopping:
                    self.telemetry.logger.error("a new worker does not start: the old ones stay at work")
                return False
        return True

    async def _open_admin(self) -> None:
        settings = self.settings
        path = self._folder / process.SUPERVISOR
        try:
            listener = admin_socket(path)
        except OSError as error:
            raise ConfigurationError(
                f"no socket can be made at {path} ({error}): set TMPDIR to a folder with a short name that can be "
                "written"
            ) from None
        inner = Server(app_of_workers(self), listener=listener)
        await inner.start()
        self._owned.push_async_callback(inner.stop, _DRAIN)
        if settings.admin_port is None:
            return
        app = admin_app(self, loopback=is_loopback(settings.admin_host))
        outer = Server(app, settings.admin_host, settings.admin_port)
        try:
            await outer.start()
        except ConfigurationError as error:
            raise ConfigurationError(f"{settings.origin.prefix}ADMIN_PORT: {error}") from None
        self.admin_url = outer.url
        self._owned.push_async_callback(outer.stop, _DRAIN)

    def _slot(self, number: int) -> Slot:
        settings = self.settings
        return Slot(
            number,
            self._started,
            self.whole,
            self.telemetry.logger,
            restarted=self._restarts.inc,
            timeout=settings.worker_timeout,
            # Its phases (requests, workers in the background, relay), each bounded by its own settings.
            patience=settings.drain_delay + 3 * settings.shutdown_timeout + 5,
        )

    async def _started(self, number: int) -> process.WorkerProcess:
        if self._listener is None:
            raise MicrokitError(f"{self.declared.name} has no port yet")
        told = {} if self.level is None else {self.settings.origin.key("log_level"): self.level}
        name = f"{next(self._names)}"
        return await process.start(self._command, number, name, self._folder, self._listener, environment=told)

    async def _end_at_once(self) -> None:
        going = [*self._gathers, *([self._rolling] if self._rolling is not None else [])]
        for task in going:
            task.cancel()
        await asyncio.gather(*going, return_exceptions=True)
        await asyncio.gather(*(slot.kill() for slot in self.slots))
        await self._owned.aclose()
        await self.telemetry.close()


def check(declared: Declared, settings: ServiceSettings) -> None:
    """That several processes can do the service's work together.

    Raises:
        ConfigurationError: each would have a bus or a database of its own.
    """
    key, several = settings.origin.key, f"{settings.workers} workers"
    if not declared.stores:
        return
    if settings.bus_url.get_secret_value().startswith("memory:"):
        raise ConfigurationError(
            f"{key('bus_url')} is memory://, and each of the {several} would have a bus of its own, which the others "
            f"never hear: name a broker, such as redis://localhost:6379/0, or set {key('workers')}=1"
        )
    database = settings.database_url.get_secret_value()
    if database.startswith("sqlite") and (":memory:" in database or database.rstrip("/").endswith(":")):
        raise ConfigurationError(
            f"{key('database_url')} is a database in memory, and each of the {several} would have one of its own: name "
            f"a file or a PostgreSQL server, or set {key('workers')}=1"
        )
