"""Wake-ups between the processes on one database: PostgreSQL's LISTEN and NOTIFY, on a connection of their own.

A notice is a hint, as a :class:`~microkit.db.signal.Signal` is: what must not be missed is in a table. It is sent after
COMMIT and not inside the transaction, where it would make all committing transactions of the server queue up behind one
lock (docs/decisions/0023).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Any, Final

from microkit.db.shield import finish

PREFIX: Final = "microkit_"
GAP: Final = 0.01
"""Seconds between two notices of one process. Whoever is woken finds all that came meanwhile."""
CHECK: Final = 30.0
"""Seconds of silence after which the connection is tried, lest it hang on a peer that is gone."""
PATIENCE: Final = 10.0
LONGEST_PAUSE: Final = 10.0

Connect = Callable[[], Awaitable[Any]]


class _PooledError(Exception):
    """Between us and the server is a pooler, which hands a connection's notices to nobody."""


class Notices:
    """Sends and hears notices; connects when there is something to send or to hear. Belongs to one event loop.

    ``connect`` opens a connection of asyncpg; ``heard`` is called with the name in a notice of another process.
    """

    def __init__(self, connect: Connect, heard: Callable[[str], None], logger: logging.Logger) -> None:
        self._connect = connect
        self._heard = heard
        self._logger = logger
        self._names: set[str] = set()
        self._to_tell: set[str] = set()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._away = False
        self._pooled = False
        self.hears = False

    def listen(self, name: str) -> None:
        """Hears the notices of that name from now on, as long as :attr:`hears` is true."""
        if name not in self._names:
            self._names.add(name)
            self.hears = False
            self._go()

    def tell(self, name: str) -> None:
        """Sends a notice soon; several of one name become one. Without a connection it is lost after a while."""
        self._to_tell.add(name)
        self._go()

    async def close(self) -> None:
        """Sends nothing more and hears nothing more."""
        task, self._task = self._task, None
        self.hears = False
        if task is not None:
            task.cancel()
            await asyncio.wait({task}, timeout=PATIENCE)

    def _go(self) -> None:
        self._wake.set()
        if (self._task is None or self._task.done()) and not self._pooled:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="notices")

    async def _run(self) -> None:
        failures = 0
        while True:
            try:
                connection = await self._open()
            except _PooledError:
                self._logger.info("database: behind a pooler, so other processes are not heard and tables are polled")
                self._pooled = True
                return
            except Exception as error:  # noqa: BLE001  whatever it is, the tables are polled meanwhile
                self._lost(error)
            else:
                failures = 0
                try:
                    await self._serve(connection)
                except Exception as error:  # noqa: BLE001  as above
                    self._lost(error)
                finally:
                    self.hears = False
                    await finish(_end(connection), cut=connection.terminate)
            failures += 1
            self._to_tell.clear()
            await asyncio.sleep(random.uniform(0.05, min(LONGEST_PAUSE, 0.1 * 2 ** min(failures, 10))))  # noqa: S311

    async def _open(self) -> Any:
        connection = await self._connect()
        try:
            pid = await connection.fetchval("SELECT pg_backend_pid()")
        except BaseException:
            connection.terminate()
            raise
        if pid != connection.get_server_pid():  # the number that came with the connection is a pooler's
            connection.terminate()
            raise _PooledError
        if self._away:
            self._logger.info("database: other processes are heard again")
            self._away = False
        return connection

    def _lost(self, error: Exception) -> None:
        if not self._away:  # once, not at every attempt
            self._logger.info("database: other processes are not heard, and tables polled instead: %r", error)
            self._away = True

    async def _serve(self, connection: Any) -> None:
        """Until the connection is lost."""
        connection.add_termination_listener(lambda _connection: self._wake.set())
        listening: set[str] = set()
        while True:
            self._wake.clear()
            for name in sorted(self._names - listening):
                await connection.add_listener(PREFIX + name, self._hear)
                listening.add(name)
                self._heard(name)  # what was told before we listened
            self.hears = bool(listening)
            names, self._to_tell = self._to_tell, set()
            if names:
                await connection.execute(";".join(f'NOTIFY "{PREFIX}{name}"' for name in sorted(names)))
                await asyncio.sleep(GAP)
            try:
                async with asyncio.timeout(CHECK):
                    await self._wake.wait()
            except TimeoutError:
                await connection.execute("SELECT 1")
            if connection.is_closed():
                raise ConnectionError("the connection was closed")

    def _hear(self, connection: Any, pid: int, channel: str, _payload: object) -> None:
        if pid != connection.get_server_pid():  # our own: whoever is here knows
            self._heard(channel.removeprefix(PREFIX))


async def _end(connection: Any) -> None:
    with contextlib.suppress(Exception):
        await connection.close(timeout=PATIENCE / 10)
