"""Finishing what must be finished, when the one who asked for it has been cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

import anyio

GRACE: Final = 5.0
"""Seconds that a cancelled transaction may still take to end in order."""


async def finish(work: Coroutine[Any, Any, None], *, cut: Callable[[], None] | None = None) -> None:
    """Awaits ``work`` to its end. Cancelled meanwhile, it still waits, but not much longer than :data:`GRACE`.

    Then it calls ``cut``, which is to make ``work`` fail, and cancels it.

    ``work`` runs as a task of its own, because asyncio's cancellation goes through any shield that is not a task, and
    anyio's comes again at every await.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        with anyio.CancelScope(shield=True):
            if not await _ended(task, GRACE):
                if cut is not None:
                    cut()
                task.cancel()
                await _ended(task, GRACE)
        raise


async def _ended(task: asyncio.Task[None], patience: float) -> bool:
    loop = asyncio.get_running_loop()
    until = loop.time() + patience
    while not task.done() and (left := until - loop.time()) > 0:
        try:
            await asyncio.wait({task}, timeout=left)
        except asyncio.CancelledError:
            continue  # the caller raises the first one at the end
    if task.done() and not task.cancelled():
        task.exception()  # seen: the cancellation says more
    return task.done()
