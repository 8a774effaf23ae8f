"""The life of a process, played by a thread: it can be stopped dead at any moment, and nothing of it goes on.

A killed process does not unwind: no ``finally``, no rollback, no farewell. So the thread that reaches the moment of its
death stops right there, in the middle of the call, and with it the event loop and all its tasks. What the operating
system does for the dead is done for it: its connections to databases are closed without a word, its sockets cut. When
nobody looks any more, the dead is taken apart.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Final

from microkit.db.sqlite import cut
from microkit.errors import MicrokitError
from microkit.testing.clock import VirtualClock, VirtualLoop

_BURIAL: Final = 20.0
"""Real seconds to take a dead life apart."""


class Life:
    """Runs ``main`` in a thread and an event loop of its own."""

    def __init__(self, clock: VirtualClock, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self.dead = False
        self._clock = clock
        self._main = main
        self._loop: VirtualLoop | None = None
        self._error: BaseException | None = None
        self._over = threading.Event()
        self._buried = threading.Event()
        self._thread = threading.Thread(target=self._live, name="life", daemon=True)

    def live(self) -> None:
        """Returns when ``main`` has ended, or when it was killed: then it is :attr:`dead`.

        Raises:
            Exception: whatever ended ``main``.
        """
        self._thread.start()
        self._over.wait()
        if not self.dead:
            self._thread.join()
            if self._error is not None:
                raise self._error

    def die(self) -> None:
        """Called by what runs in it, at the moment of its death."""
        self.dead = True
        if self._loop is not None:
            self._loop.dead = True
        self._over.set()
        self._buried.wait()
        for task in asyncio.all_tasks(self._loop) - {asyncio.current_task(self._loop)}:
            task.cancel()
        raise asyncio.CancelledError

    def cut(self, connections: list[Any]) -> None:
        """Ends the connections of the dead: those to SQLite files, and all sockets, the listening ones, too."""
        for driver in connections:
            if hasattr(driver, "stop"):
                _cut_sqlite(driver)
        if self._loop is None:
            return
        nothing = os.open(os.devnull, os.O_RDWR)
        for key in list(self._loop.sockets.get_map().values()):
            if key.fd not in self._loop.own:
                os.dup2(nothing, key.fd)  # closes it, and its number is given to nobody else
        os.close(nothing)
        self._clock.forget()

    def bury(self) -> None:
        """Takes the dead apart, after all that matters has been looked at.

        Raises:
            MicrokitError: something of it does not end.
        """
        logging.disable(logging.CRITICAL)  # the dead complain
        try:
            self._buried.set()
            self._thread.join(_BURIAL)
        finally:
            logging.disable(logging.NOTSET)
            self._clock.forget()
        if self._thread.is_alive():
            raise MicrokitError(
                f"something swallows its cancellation and does not end: {asyncio.all_tasks(self._loop)}"
            )

    def _live(self) -> None:
        self._loop = VirtualLoop(self._clock)
        try:
            with asyncio.Runner(loop_factory=self._given) as runner:
                runner.get_loop().set_exception_handler(self._complain)
                runner.run(self._supervised())
        except BaseException as error:  # noqa: BLE001  it is raised again, where it is waited for
            self._error = error
        finally:
            self._over.set()

    async def _supervised(self) -> None:
        try:
            await self._main()
        finally:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            if self.dead and others:
                await asyncio.wait(others, timeout=_BURIAL)  # each is cancelled once, and cleans up in its own time
            if self.dead and self._loop is not None:
                for transport in list(self._loop._transports.values()):  # type: ignore[attr-defined]  # noqa: SLF001  nobody else knows those that were being opened
                    transport.abort()
                await asyncio.sleep(0)

    def _given(self) -> asyncio.AbstractEventLoop:
        assert self._loop is not None  # noqa: S101  made a moment ago
        return self._loop

    def _complain(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not self.dead:
            loop.default_exception_handler(context)


def _cut_sqlite(driver: Any) -> None:
    """Closes an aiosqlite connection in its thread, after the statement that is under way.

    The locks of a process that died are gone. Here a cursor that the dead holds would keep the file locked: SQLite
    closes a connection when its last statement is finalized. So the transaction ends before.
    """
    if driver._connection is not None:  # noqa: SLF001  its loop is dead, and so is all that is public
        driver._tx.put_nowait((None, driver._connection.rollback))  # noqa: SLF001  as above
    cut(driver)
    driver._thread.join(5)  # noqa: SLF001  as above
