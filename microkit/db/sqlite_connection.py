"""A connection to an SQLite file, and the thread that carries out its statements.

It is aiosqlite's, save for how it ends. There a statement that outlives its event loop kills the thread, and the file
stays open; one whose opening is cancelled is closed by chance; and to close twice is to wait for ever.
"""

from __future__ import annotations

import asyncio
import sqlite3
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from queue import SimpleQueue
from threading import Thread
from typing import Any, Final

import aiosqlite
from aiosqlite.core import set_exception, set_result

_Job = tuple[asyncio.Future[Any] | None, Callable[[], Any]]

_LAST: Final = object()
"""What the last job of a thread returns."""


class SqliteConnection(aiosqlite.Connection):
    """``path`` and ``options`` are those of :func:`sqlite3.connect`. Awaited, it is opened."""

    def __init__(self, path: str, options: Mapping[str, Any]) -> None:
        self._file: sqlite3.Connection | None = None

        def connect() -> sqlite3.Connection:
            opened: sqlite3.Connection = sqlite3.connect(path, **options)
            self._file = opened
            return opened

        super().__init__(connect, iter_chunk_size=64)
        self._thread = Thread(target=_work, args=(self._tx,), name="sqlite", daemon=True)

    @property
    def ending(self) -> bool:
        """Whether it was told to close, and its thread has not done so yet."""
        return not self._running and self._thread.is_alive()

    def stop(self) -> asyncio.Future[Any] | None:
        """Closes it in its thread, after what is queued there. Who wants to wait for that awaits the result."""
        if not self._running:
            return None
        self._running = False
        try:
            future = asyncio.get_running_loop().create_future()
        except RuntimeError:
            future = None
        self._tx.put_nowait((future, self._close_file))
        return future

    def _close_file(self) -> object:
        # Not _connection: of one whose opening was cancelled aiosqlite has forgotten it.
        if self._file is not None:
            self._file.close()
        self._file = self._connection = None
        return _LAST


def _work(jobs: SimpleQueue[_Job]) -> None:
    while True:
        future, job = jobs.get()
        try:
            result = job()
        except BaseException as error:  # noqa: BLE001  whatever it is, it is for who waits
            _answer(future, set_exception, error)
        else:
            _answer(future, set_result, result)
            if result is _LAST:
                return
        del future, job


def _answer(future: asyncio.Future[Any] | None, how: Callable[..., None], value: object) -> None:
    if future is not None:
        with suppress(RuntimeError):  # its loop is closed: nobody waits any more
            future.get_loop().call_soon_threadsafe(how, future, value)


class SqliteConnections:
    """Those of one database, while they are open."""

    def __init__(self) -> None:
        self._made: weakref.WeakSet[SqliteConnection] = weakref.WeakSet()

    async def connect(self, path: str, **options: Any) -> SqliteConnection:
        """Opens one more."""
        made = SqliteConnection(path, options)
        self._made.add(made)
        opened = await made
        assert opened is made  # noqa: S101  as aiosqlite's types do not say
        return made

    async def closed(self, patience: float) -> None:
        """Waits for those that were told to close, which their threads do in their own time; not for longer than
        ``patience`` seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                while any(each.ending for each in list(self._made)):  # noqa: ASYNC110  a thread tells no event of its end
                    await asyncio.sleep(0.001)
