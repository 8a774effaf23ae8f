"""Notices clients that hang up: no work is done for nobody, and an endless answer ends."""

from __future__ import annotations

import asyncio
from typing import Final

from microkit.gateway.body import ClientGone, Receive, RequestBody

TICK: Final = 0.05
"""Seconds. Exchanges that last longer than one to two of these are watched, each by a task of its own; most are over by
then, and a task for each would cost as much as the routing."""


class Watched:
    """One exchange, in its task."""

    __slots__ = ("_gone", "_receive", "_task", "_watcher", "body", "seen")

    def __init__(self, receive: Receive, body: RequestBody | None, task: asyncio.Task[object]) -> None:
        self._receive = receive
        self._task = task
        self._gone = False
        self._watcher: asyncio.Task[None] | None = None
        self.body = body
        self.seen = False

    def watch(self) -> None:
        """Begins to listen for the client's end."""
        self._watcher = asyncio.create_task(self._watch())

    def over(self, error: BaseException | None) -> None:
        """The exchange has ended, with ``error``.

        Raises:
            ClientGone: the client has hung up, and that is why.
        """
        if self._watcher is not None:
            self._watcher.cancel()
        # As asyncio.timeout does it: a cancellation that came from outside as well goes on as one.
        if self._gone and self._task.uncancel() == 0 and isinstance(error, asyncio.CancelledError):
            raise ClientGone from None

    async def _watch(self) -> None:
        if self.body is not None:
            await self.body.ended()
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        self._task.cancel()


class ClientWatch:
    """All exchanges of a gateway. One timer looks for those that last."""

    def __init__(self) -> None:
        self._exchanges: dict[Watched, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def begin(self, receive: Receive, body: RequestBody | None) -> Watched:
        """Watches the exchange of the current task until :meth:`end`."""
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()  # once: it asks the kernel for the process each time
        task = asyncio.current_task(loop)
        if task is None:
            raise RuntimeError("an exchange runs in a task")
        watched = Watched(receive, body, task)
        self._exchanges[watched] = None
        if self._timer is None:
            self._timer = loop.call_later(TICK, self._look)
        return watched

    def end(self, watched: Watched, error: BaseException | None = None) -> None:
        """Must be called however the exchange ended.

        Raises:
            ClientGone: the client has hung up, and that is why it ended.
        """
        self._exchanges.pop(watched, None)
        watched.over(error)

    def _look(self) -> None:
        self._timer = None
        for watched in list(self._exchanges):
            if watched.seen:
                watched.watch()
                del self._exchanges[watched]  # from here on it looks after itself
            else:
                watched.seen = True
        if self._exchanges:
            self._timer = asyncio.get_running_loop().call_later(TICK, self._look)
