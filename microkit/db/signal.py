"""Wake-ups inside one process: a loop that polls a table is told that there is something to find."""

from __future__ import annotations

import asyncio


class Signal:
    """Set by those who put work into a table, waited for by the one loop that takes it out.

    A :meth:`set` while nobody waits is kept; several of them wake once. It is a hint only: what must not be missed is
    in the table.

    ``alone`` is set by who waits for it, and says that nobody in another process needs to be woken, too.
    """

    __slots__ = ("_event", "alone")

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self.alone = False

    def set(self) -> None:
        self._event.set()

    async def wait(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109  a poll interval, not a failure
        """Waits at most ``timeout`` seconds, for ever with ``None``; whether it was set. Clears it."""
        try:
            async with asyncio.timeout(timeout):
                await self._event.wait()
        except TimeoutError:
            return False
        self._event.clear()
        return True
