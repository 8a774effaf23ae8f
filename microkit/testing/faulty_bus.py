"""A bus that fails on purpose."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from microkit.bus.memory import MemoryBus
from microkit.bus.port import Consumer, PublishFailed
from microkit.message import Message


class FaultyBus:
    """A broker in memory that confirms what it takes, as Kafka and Redis do, and fails as it is told to.

    ``away`` makes everything raise ``ConnectionError``. ``refuse`` looks at each message and returns the error that the
    broker answers it with, if any; later messages of its key in the batch fail with it. While the event ``open`` is
    cleared, ``publish`` hangs: before it has taken the batch, or after it with ``hang_after``. ``published`` holds all
    messages taken, in order; ``attempts`` counts the calls of ``publish``.
    """

    def __init__(self) -> None:
        self._broker = MemoryBus()
        self.promises = self._broker.promises
        self.published: list[Message] = []
        self.away = False
        self.refuse: Callable[[Message], Exception | None] = lambda _message: None
        self.open = asyncio.Event()
        self.open.set()
        self.hang_after = False
        self.attempts = 0

    async def start(self) -> None:
        self._check()
        await self._broker.start()

    async def publish(self, messages: Sequence[Message]) -> None:
        self.attempts += 1
        self._check()
        if not self.hang_after:
            await self.open.wait()
        failed: dict[int, Exception] = {}
        keys: dict[tuple[str, str], Exception] = {}
        taken = []
        for index, message in enumerate(messages):
            name = (message.topic, message.key)
            error = keys.get(name) or self.refuse(message)
            if error is None:
                taken.append(message)
            else:
                failed[index] = keys[name] = error
        await self._broker.publish(taken)
        self.published += taken
        if self.hang_after:
            await self.open.wait()
        if failed:
            raise PublishFailed(failed)

    def declare(self, group: str, topics: Sequence[str]) -> None:
        self._broker.declare(group, topics)

    async def subscribe(self, group: str, topics: Sequence[str]) -> Consumer:
        self._check()
        return await self._broker.subscribe(group, topics)

    async def ping(self) -> None:
        self._check()

    async def close(self) -> None:
        await self._broker.close()

    def _check(self) -> None:
        if self.away:
            raise ConnectionError("the broker is away")
