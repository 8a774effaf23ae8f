"""Messages for a bus under test, and what is done with those that come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from uuid import uuid4

from microkit.bus.port import Consumer, Delivery
from microkit.message import Message

PATIENCE = 60.0
"""Seconds until a message that has not arrived is lost."""


def new_name() -> str:
    return f"suite.{uuid4().hex}"


def numbered(topic: str, number: int, *, keys: int = 1, start: int = 0, source: str = "suite") -> list[Message]:
    """Messages whose ids count up from ``start``, with ``keys`` keys in turn."""
    return [
        Message(topic, str(count % keys), str(count).encode(), {"ce_id": str(count), "ce_source": source})
        for count in range(start, start + number)
    ]


def numbers(number: int) -> list[str]:
    return [str(count) for count in range(number)]


def ids(deliveries: Sequence[Delivery]) -> list[str]:
    return [delivery.message.id for delivery in deliveries]


def by_id(message: Message) -> str:
    return message.id


def number_of(message: Message) -> int:
    return int(message.id)


async def receive(
    consumer: Consumer, number: int, *, ack: bool = True, known: set[str] | None = None
) -> list[Delivery]:
    """Fetches until ``number`` new messages are there (copies and those ``known`` do not count)."""
    got: list[Delivery] = []
    seen = set(known or ())
    wanted = len(seen) + number
    until = asyncio.get_running_loop().time() + PATIENCE
    while len(seen) < wanted:
        assert asyncio.get_running_loop().time() < until, f"{wanted - len(seen)} of {number} messages did not arrive"
        deliveries = await consumer.fetch(100, 0.5)
        if ack:
            await consumer.ack(deliveries)
        got.extend(deliveries)
        seen.update(ids(deliveries))
    return got


@asynccontextmanager
async def working(members: Sequence[Consumer], seen: list[Delivery]) -> AsyncIterator[None]:
    """Members that fetch and acknowledge in the background and write down what they saw."""

    async def member(consumer: Consumer) -> None:
        while True:
            got = await consumer.fetch(50, 0.2)
            seen.extend(got)
            await consumer.ack(got)

    tasks = [asyncio.create_task(member(consumer)) for consumer in members]
    try:
        yield
    finally:
        await end(tasks)


async def until(true: Callable[[], bool], say: Callable[[], str], *, twice: bool = False) -> None:
    """Waits until something is true, in vain for at most ``PATIENCE`` seconds, or ``twice`` that."""
    deadline = asyncio.get_running_loop().time() + PATIENCE * (1 + twice)
    while not true():
        assert asyncio.get_running_loop().time() < deadline, say()
        await asyncio.sleep(0.005)


async def end(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    for ended in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(ended, Exception):
            raise ended
