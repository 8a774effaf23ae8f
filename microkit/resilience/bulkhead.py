"""The bulkhead: how many calls may be under way at once, so that one slow neighbour does not take all there is."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import Final

from microkit.errors import Unavailable

CONCURRENCY: Final = 256
PATIENCE: Final = 1.0


class BulkheadFull(Unavailable, status=503, title="Too many calls to the service are under way"):
    """The call was not sent."""


class Bulkhead:
    """At most ``concurrency`` at once; who comes above that waits, in turn, for ``patience`` seconds at most."""

    __slots__ = ("_free", "_name", "_patience", "_waiting", "concurrency", "refused")

    def __init__(self, name: str, concurrency: int = CONCURRENCY, patience: float = PATIENCE) -> None:
        self.concurrency = concurrency
        self.refused = 0
        """Calls that waited in vain."""
        self._name = name
        self._free = concurrency
        self._patience = patience
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def active(self) -> int:
        """Calls under way."""
        return self.concurrency - self._free

    @property
    def waiting(self) -> int:
        """Calls that wait for their turn."""
        return len(self._waiting)

    def try_enter(self) -> bool:
        """Whether there was room at once. What entered must :meth:`leave`."""
        if self._free and not self._waiting:
            self._free -= 1
            return True
        return False

    async def enter(self) -> None:
        """Waits for room. What entered must :meth:`leave`.

        Raises:
            BulkheadFull: there was none in time.
        """
        if self.try_enter():
            return
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        self._waiting.append(turn)
        timer = loop.call_later(self._patience, _give_up, turn)
        try:
            await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.leave()  # its turn came together with the cancellation
            else:
                with contextlib.suppress(ValueError):  # leave() has passed over it already
                    self._waiting.remove(turn)
            if isinstance(error, TimeoutError):
                self.refused += 1
                raise BulkheadFull(
                    f"{self.concurrency} calls to {self._name} are under way, and none ended within "
                    f"{self._patience:g} s",
                    headers={"Retry-After": "1"},
                ) from None
            raise
        finally:
            timer.cancel()

    def leave(self) -> None:
        """Makes room; the longest waiting comes in."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1


def _give_up(turn: asyncio.Future[None]) -> None:
    if not turn.done():
        turn.set_exception(TimeoutError())
