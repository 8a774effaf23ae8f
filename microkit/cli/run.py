"""``microkit run``: one service as it is in production, in a process of its own or in several workers."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
import time
from contextlib import AsyncExitStack, ExitStack

import uvloop

from microkit.cli.load import find_service, load_system
from microkit.cli.signals import on_signals, unless_told
from microkit.cli.steady import settle
from microkit.errors import MicrokitError
from microkit.instance import Instance
from microkit.service import Service
from microkit.settings import ServiceSettings
from microkit.telemetry.logs import configure
from microkit.workers import Supervisor, placed


def run(service: str, system: str | None) -> None:
    """Runs the service until it is told to end.

    Raises:
        ConfigurationError: it cannot be started.
        MicrokitError: it cannot go on; whoever supervises it starts a new process.
    """
    placement = placed()
    with ExitStack() as undone:
        gc.disable()  # what loads stays: looking for garbage in it makes a start an eighth dearer for the neighbours
        undone.callback(gc.enable)
        reference, found = load_system(system)
        declared = find_service(found, service)
        settings = declared.settings()
        undone.callback(configure(sys.stdout, format=settings.log_format))
        logging.getLogger("alembic").setLevel(logging.WARNING)  # that a database is new is no news
        try:
            if settings.workers > 1 and placement is None:
                gc.enable()
                uvloop.run(_look_after(declared, settings, reference))
            else:
                instance = Instance(declared.declared, settings, placement=placement)
                # A worker is told to end by its supervisor, and by whoever tells all processes of the service: once is
                # enough. What ends it at once is SIGKILL, which the supervisor sends when it is told twice.
                uvloop.run(_serve(instance, declared, again=placement is None))
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None


async def _serve(instance: Instance, service: Service, *, again: bool) -> None:
    stop = asyncio.Event()
    on_signals(stop, again=again)
    began = time.monotonic()
    async with instance:
        settle()
        gc.enable()
        instance.telemetry.logger.info(
            "ready", extra={"url": instance.url, "pid": os.getpid(), "seconds": round(time.monotonic() - began, 3)}
        )
        failure = await _told_or_failed(stop, instance)
    if failure is not None:
        raise MicrokitError(f"{service.name} cannot go on: {failure}")


async def _told_or_failed(stop: asyncio.Event, instance: Instance) -> MicrokitError | None:
    """Waits until it is told to end, or can no longer do its work; why, if that is so."""
    told, failed = asyncio.create_task(stop.wait()), asyncio.create_task(instance.failed.wait())
    try:
        await asyncio.wait({told, failed}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        told.cancel()
        failed.cancel()
    return instance.failure if instance.failed.is_set() else None


async def _look_after(service: Service, settings: ServiceSettings, reference: str) -> None:
    stop = asyncio.Event()
    on_signals(stop)
    began = time.monotonic()
    command = [sys.executable, "-m", "microkit.cli", "run", service.name, "--system", reference]
    supervisor = Supervisor(service.declared, settings, command)
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, supervisor.roll)
    async with AsyncExitStack() as owned:
        if await unless_told(stop, owned.enter_async_context(supervisor)) is None:
            return
        told = {"url": supervisor.url, "pid": os.getpid(), "workers": settings.workers}
        supervisor.telemetry.logger.info("ready", extra={**told, "seconds": round(time.monotonic() - began, 3)})
        await stop.wait()
