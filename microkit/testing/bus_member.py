"""A member of a group in a process of its own, to be killed by the suite: ``bus_member URL GROUP TOPIC NUMBER``.

It fetches twenty messages and writes their ids, one a line; then it acknowledges the first ``NUMBER`` of them, writes
``acknowledged``, and waits for its end with the others in its hands.
"""
# ruff: noqa: T201  what it writes is what it is for

from __future__ import annotations

import asyncio
import sys

from microkit.bus.connect import connect
from microkit.bus.port import Delivery

HELD = 20


async def member(url: str, group: str, topic: str, acknowledged: int) -> None:
    bus = connect(url)
    await bus.start()
    consumer = await bus.subscribe(group, [topic])
    held: list[Delivery] = []
    while len(held) < HELD:
        held += await consumer.fetch(HELD - len(held), 1.0)
    for delivery in held:
        print(delivery.message.id, flush=True)
    await consumer.ack(held[:acknowledged])
    print("acknowledged", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(member(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
