"""What a test hears of the events that a system publishes."""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

from microkit.bus.port import Consumer
from microkit.message import Event

E = TypeVar("E", bound=Event)


class Heard(Generic[E]):
    """The events of one type, in the order in which they are delivered. Made by ``SystemUnderTest.listening``."""

    def __init__(self, event: type[E], consumer: Consumer) -> None:
        self._event = event
        self._consumer = consumer

    async def next(self, *, within: float = 10.0) -> E:
        """The next event; waits ``within`` seconds for it.

        Raises:
            TimeoutError: none has come.
            UndecodableMessage: one has come whose payload does not fit.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + within
        while (left := until - loop.time()) > 0:
            for delivery in await self._consumer.fetch(1, left):
                await self._consumer.ack([delivery])
                if delivery.message.type == self._event.event_type:
                    return self._event.from_message(delivery.message)
        raise TimeoutError(f"no {self._event.__name__} came within {within:g} s")
