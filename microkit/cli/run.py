"""``microkit run``: one service as a process of its own, as it is in production."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
import time

import uvloop

from microkit.cli.load import find_service, load_system
from microkit.cli.signals import on_signals
from microkit.errors import MicrokitError
from microkit.instance import Instance
from microkit.service import Service
from microkit.telemetry.logs import configure


def run(service: str, system: str | None) -> None:
    """Runs the service until it is told to end.

    Raises:
        ConfigurationError: it cannot be started.
        MicrokitError: it cannot go on; whoever supervises it starts a new process.
    """
    _, found = load_system(system)
    declared = find_service(found, service)
    settings = declared.settings()
    undo = configure(sys.stdout, format=settings.log_format)
    logging.getLogger("alembic").setLevel(logging.WARNING)  # that a database is new is no news
    try:
        uvloop.run(_serve(declared.instance(settings), declared))
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    finally:
        undo()


async def _serve(instance: Instance, service: Service) -> None:
    stop = asyncio.Event()
    on_signals(stop)
    began = time.monotonic()
    async with instance:
        gc.collect()
        gc.freeze()  # what start-up made stays for good: no collection need walk through it again
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
