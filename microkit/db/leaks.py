"""Connections that are held for too long are told of, with where their holder is stuck."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from typing import Final

from microkit.db.holders import Holders
from microkit.telemetry import Telemetry

_LONGEST_ROUND: Final = 15.0
_SHORTEST_ROUND: Final = 0.02


class LeakWatch:
    """Looks now and then who has had a connection for more than ``after`` seconds, and logs each such holder once."""

    def __init__(self, after: float, tables: Callable[[], Iterable[Holders]], telemetry: Telemetry) -> None:
        self._after = after
        self._tables = tables
        self._logger: logging.Logger = telemetry.logger
        self._count = telemetry.metrics.counter(
            "db_client_connection_leaks_total",
            "Connections that were held too long.",
            ("db_client_connection_pool_name",),
        )
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to look, unless it is turned off."""
        if self._after and self._task is None:
            self._task = asyncio.create_task(self._look_forever(), name="connection leaks")

    async def stop(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _look_forever(self) -> None:
        pause = max(_SHORTEST_ROUND, min(_LONGEST_ROUND, self._after / 4))
        while True:
            await asyncio.sleep(pause)
            self._look()

    def _look(self) -> None:
        before = time.monotonic() - self._after
        for table in self._tables():
            for holder in table:
                if holder.reported or holder.since > before:
                    continue
                holder.reported = True
                self._count(table.pool).inc()
                view = holder.view(table.pool)
                self._logger.warning(
                    "a connection is held for %.1f s by %s, taken at %s; it may be leaked. The holder is at:\n%s",
                    view.seconds,
                    view.work or view.function or view.task,
                    view.taken_at,
                    "\n".join(view.now) or "a task that has ended",
                    extra={"pool": table.pool, "task": view.task, "function": view.function},
                )
