"""Finishing what must be finished, when the one who asked for it has been cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import anyio


async def finish(work: Coroutine[Any, Any, None], grace: float) -> None:
    """Awaits ``work`` to its end. Cancelled meanwhile, still waits for it up to ``grace`` seconds, then is cancelled.

    ``work`` runs as a task of its own, because asyncio's cancellation goes through any shield that is not a task, and
    anyio's comes again at every await. After ``grace`` it is cancelled itself.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        with anyio.CancelScope(shield=True):
            await _wait_out(task, grace)
        raise


async def _wait_out(task: asyncio.Task[None], grace: float) -> None:
    loop = asyncio.get_running_loop()
    until = loop.time() + grace
    while not task.done() and (left := until - loop.time()) > 0:
        try:
            await asyncio.wait({task}, timeout=left)
        except asyncio.CancelledError:
            continue
    if task.done():
        if not task.cancelled():
            task.exception()  # seen: the cancellation says more
    else:
        task.cancel()
