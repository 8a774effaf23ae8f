"""A consumer that falls a million messages behind, for ``benchmarks.bus``: what its process holds above its start.

Its handler takes its time while another process publishes; then it is let run for a while.
"""
# ruff: noqa: PLC0415  a contender's process loads what that contender needs and nothing else

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.bus_redis import BATCH, PAYLOAD, BillPaid, bill_of

CONTENDERS = ("redis",)
MESSAGES = 1_000_000
SLOW = 0.02
RUN = 15.0
"""Seconds."""


@contextmanager
def broker() -> Iterator[str]:
    from microkit.testing.valkey import valkey

    with valkey() as server:
        yield server.url


def run(name: str, url: str) -> dict[str, float]:
    import uvloop

    return uvloop.run(_publish(url) if name == "publish" else _fall_behind(url))


async def _publish(url: str) -> dict[str, float]:
    from microkit.bus.redis import RedisBus

    bus = RedisBus(url)
    await bus.start()
    events = [BillPaid(bill_id=bill_of(number), number=number, **PAYLOAD) for number in range(10 * BATCH)]
    for start in range(0, MESSAGES, len(events)):
        messages = [event.to_message("billing", message_id=f"{start + at}") for at, event in enumerate(events)]
        for at in range(0, len(messages), BATCH):
            await bus.publish(messages[at : at + BATCH])
    await bus.close()
    return {}


async def _fall_behind(url: str) -> dict[str, float]:
    from microkit.bus import ConsumerRuntime, Delivery, Subscription
    from microkit.bus.redis import RedisBus
    from microkit.telemetry import Telemetry

    bus = RedisBus(url)
    await bus.start()
    handled = 0
    slow = True

    async def handle(delivery: Delivery) -> None:
        nonlocal handled
        BillPaid.from_message(delivery.message)
        handled += 1
        if slow:
            await asyncio.sleep(SLOW)

    runtime = ConsumerRuntime(bus, Telemetry("bench"))
    runtime.add(Subscription("behind", (BillPaid.event_topic,), handle))
    await runtime.start()
    for number in range(200):
        await bus.publish([BillPaid(bill_id=bill_of(number), number=number, **PAYLOAD).to_message("billing")])
    while handled < 200:  # noqa: ASYNC110  the consumer's own affair
        await asyncio.sleep(0.05)
    before = most = _resident()
    publisher = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.bus", "--contender", "behind:publish", url
    )
    while publisher.returncode is None:
        await asyncio.sleep(0.1)
        most = max(most, _resident())
    assert publisher.returncode == 0
    behind = sum(part.waiting for part in await bus.lag("behind", [BillPaid.event_topic]))
    slow, slowly = False, handled
    for _ in range(int(RUN * 10)):
        await asyncio.sleep(0.1)
        most = max(most, _resident())
    assert handled > slowly + 10_000, (handled, slowly)
    await runtime.stop(5)
    await bus.close()
    return {"behind_messages": behind, "behind_mb": (most - before) / 2**20}


def _resident() -> int:
    """Bytes of memory that the process has."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096
