"""The gateway's connections to the instances: kept while they are used, never more than allowed to one of them."""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from typing import Final
from urllib.parse import urlsplit

from microkit.errors import Unavailable
from microkit.gateway.connection import Connection, NotConnected, Owner

CONNECT_TIMEOUT: Final = 3.0
"""Seconds in which a connection must stand, waiting for a free one included."""

KEEP_ALIVE: Final = 4.0
"""Seconds an idle connection is kept. Less than servers keep theirs (uvicorn: 5 s), so that a request does not meet one
that the other side has just closed."""

TICK: Final = 0.05
"""Seconds between two looks at all that is waited for: one timer for all exchanges, where one each costs more than the
parsing of a small answer."""


class Origin(Owner):
    """The connections to one instance."""

    def __init__(self, url: str, waiting: set[Connection], limit: int, tls: ssl.SSLContext | None) -> None:
        parts = urlsplit(url)
        self.host = parts.hostname or ""
        self.port = parts.port or (443 if parts.scheme == "https" else 80)
        self.tls = (tls or ssl.create_default_context()) if parts.scheme == "https" else None
        self.base = parts.path.rstrip("/")
        self.authority = parts.netloc.encode("ascii")
        self.url = f"{parts.scheme}://{parts.netloc}"
        self.waiting = waiting
        self.idle: list[Connection] = []
        self._connections: set[Connection] = set()
        self._connecting = 0
        self._limit = limit
        self._queue: deque[asyncio.Future[None]] = deque()

    @property
    def open(self) -> int:
        """How many connections there are, those being made included."""
        return len(self._connections) + self._connecting

    @property
    def unused(self) -> bool:
        """Whether nothing is lost with it."""
        return not (self.open or self._queue)

    def take(self, now: float) -> Connection | None:
        """An idle connection that is fresh enough."""
        while self.idle:
            connection = self.idle.pop()
            if not connection.closed and now - connection.idle_since < KEEP_ALIVE:
                return connection
            connection.end()
        return None

    async def connect(self, loop: asyncio.AbstractEventLoop, within: float) -> Connection:
        """A new connection, or one that has become idle meanwhile, ``within`` so many seconds.

        Raises:
            NotConnected: none can be made in time.
            Unavailable: all that are allowed were busy for too long.
        """
        until = loop.time() + min(CONNECT_TIMEOUT, within)
        while self.open >= self._limit:
            await self._turn(loop, until)
            if (connection := self.take(loop.time())) is not None:
                return connection
        self._connecting += 1
        try:
            async with asyncio.timeout_at(until):
                _, connection = await loop.create_connection(
                    lambda: Connection(loop, self), self.host, self.port, ssl=self.tls
                )
            self._connections.add(connection)
        except (OSError, TimeoutError) as error:
            raise NotConnected(refused=not isinstance(error, TimeoutError)) from None
        finally:
            self._connecting -= 1
            if self.open < self._limit:
                self._next_turn()
        return connection

    async def _turn(self, loop: asyncio.AbstractEventLoop, until: float) -> None:
        turn: asyncio.Future[None] = loop.create_future()
        self._queue.append(turn)
        try:
            async with asyncio.timeout_at(until):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self._next_turn()  # its turn came together with its end: the next one's
            if isinstance(error, TimeoutError):
                raise Unavailable("All connections to the service are busy") from None
            raise
        finally:
            if turn in self._queue:
                self._queue.remove(turn)

    def _next_turn(self) -> None:
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return

    def give_back(self, connection: Connection) -> None:
        connection.idle_since = connection.loop.time()
        self.idle.append(connection)
        if self._queue:
            self._next_turn()

    def lost(self, connection: Connection) -> None:
        if connection in self.idle:
            self.idle.remove(connection)
        self._connections.discard(connection)
        self._next_turn()

    def close(self) -> None:
        for connection in list(self._connections):
            connection.end()

    def sweep(self, now: float) -> None:
        """Closes what has been idle for long."""
        while self.idle and now - self.idle[0].idle_since >= KEEP_ALIVE:
            self.idle.pop(0).end()


class Pool:
    """Connections to all instances. ``limit`` is how many one instance gets at most."""

    def __init__(self, *, limit: int = 256, tls: ssl.SSLContext | None = None) -> None:
        self._limit = limit
        self._tls = tls
        self._origins: dict[str, Origin] = {}
        self._waiting: set[Connection] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None

    def origin(self, url: str) -> Origin:
        """The connections to the instance at ``url``."""
        found = self._origins.get(url)
        if found is None:
            if self._tls is None and url.startswith("https:"):
                self._tls = ssl.create_default_context()  # one for all: it holds every authority there is
            found = self._origins[url] = Origin(url, self._waiting, self._limit, self._tls)
        return found

    def kept(self, origin: Origin) -> Connection | None:
        """A connection that has served before and is free."""
        return origin.take(self._running().time())

    async def made(self, origin: Origin, within: float = CONNECT_TIMEOUT) -> Connection:
        """A new connection, had ``within`` so many seconds, or one that has become free meanwhile.

        Raises:
            NotConnected: none can be made.
            Unavailable: all are busy.
        """
        return await origin.connect(self._running(), within)

    def _running(self) -> asyncio.AbstractEventLoop:
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()  # once: it asks the kernel for the process each time
        if self._timer is None and not self._closed:
            self._timer = loop.call_later(TICK, self._look, loop)
        return loop

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for connection in [one for one in self._waiting if one.deadline <= now]:
            connection.expire()
        for origin in self._origins.values():
            origin.sweep(now)
        # Instances come and go; what is kept of those that have gone must not grow.
        for url in [url for url, origin in self._origins.items() if origin.unused]:
            del self._origins[url]
        busy = bool(self._origins)
        self._timer = loop.call_later(TICK, self._look, loop) if busy and not self._closed else None

    async def close(self) -> None:
        """Ends all connections."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for origin in self._origins.values():
            origin.close()
        await asyncio.sleep(0)
