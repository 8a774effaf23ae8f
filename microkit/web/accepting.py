"""Taking connections: many in each turn of the event loop.

uvloop's servers take one a turn, as libuv does since 1.45. While turns are short nobody notices. When they take 30 ms,
because there is too much to do, 33 clients a second get in, and all others wait in the kernel, where nobody sees them
and nobody tells them to come back later. asyncio's own servers take as many as their backlog holds.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable
from typing import Final

_log = logging.getLogger(__name__)

AT_ONCE: Final = 1024
"""Connections of one turn: whom a turn of a second has kept waiting, and the next one has to tell to come later."""
AT_ONCE_OF_SEVERAL: Final = 16
BACKLOG: Final = 2048
"""Connections that the kernel may keep for a listener. It says 'connected' to each of them."""
_PAUSE: Final = 1.0
_LEFT: Final = frozenset(
    {errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.ETIMEDOUT, errno.ENOPROTOOPT, errno.EOPNOTSUPP}
    | {errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH}
)
"""What accept(2) says of one client. Everything else it would say of the next one, too."""


class Acceptor:
    """Gives each connection to ``listener``, which listens already, a protocol that ``make`` makes. Where other
    processes accept on it too (``shared``), this one leaves them their part of a crowd."""

    def __init__(self, listener: socket.socket, make: Callable[[], asyncio.Protocol], *, shared: bool = False) -> None:
        self._listener = listener
        self._make = make
        self._at_once = AT_ONCE_OF_SEVERAL if shared else AT_ONCE
        self._loop = asyncio.get_running_loop()
        self._greetings: set[asyncio.Task[None]] = set()
        self._pause: asyncio.TimerHandle | None = None
        self._loop.add_reader(listener, self._accept, self._at_once)

    async def close(self) -> None:
        """Takes no more, and gives the address back. Who was taken has a protocol then.

        Who stands in the kernel's queue still is connected already and may have sent a request, which the end of the
        listener would take away without a word: they are taken, too. Of several processes the last to end must do so,
        and none knows that it is the last.
        """
        self._accept(BACKLOG)
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._listener)
        self._listener.close()
        await asyncio.gather(*self._greetings, return_exceptions=True)

    def _accept(self, most: int) -> None:
        for _ in range(most):
            try:
                connection, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _LEFT:
                    continue
                self._wait(error)
                return
            connection.setblocking(False)
            task = self._loop.create_task(self._greet(connection))
            self._greetings.add(task)
            task.add_done_callback(self._greetings.discard)

    async def _greet(self, connection: socket.socket) -> None:
        try:
            if connection.family != socket.AF_UNIX:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._loop.connect_accepted_socket(self._make, connection)
        except OSError:  # it has left already
            connection.close()

    def _wait(self, error: OSError) -> None:
        """A process without free descriptors, say, is asked by its listener without end."""
        _log.error("no connection can be taken for %g s: %s", _PAUSE, error.strerror)
        self._loop.remove_reader(self._listener)
        self._pause = self._loop.call_later(_PAUSE, self._loop.add_reader, self._listener, self._accept, self._at_once)
