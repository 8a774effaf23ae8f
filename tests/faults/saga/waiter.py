"""A saga that waits and branches, run by processes that kill themselves. A program: ``waiter.py URL FOLDER``.

Every place writes a line when it is passed. The first process that comes to a deadly place is killed there, by a real
SIGKILL; then the next one goes on. It prints the lines.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

from pydantic import BaseModel

from microkit.db import Database, Transaction
from microkit.db.migration import create_tables
from microkit.message import Event
from microkit.outbox.tables import metadata as outbox_tables
from microkit.saga import NO_EFFECT, Saga, SagaEngine, await_event, compensatable, parallel, retriable
from microkit.saga.replies import Replies, expected_by
from microkit.saga.tables import metadata as saga_tables
from microkit.saga.view import show_saga
from microkit.telemetry import Telemetry

SAGA_ID = UUID(int=7)
FOLDER = Path(sys.argv[2])


class Paid(Event, topic="bank.payments", key="payment"):
    payment: str


class Trip(BaseModel):
    payment: str = "p"
    flight: int = 0
    hotel: int = 0
    paid: int = 0


def passed(place: str) -> None:
    with (FOLDER / "passed").open("a") as lines:
        lines.write(f"{place}\n")


def deadly(place: str) -> None:
    """Ends the process the first time."""
    mark = FOLDER / f"dead-{place}"
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)


async def fly(state: Trip) -> dict[str, int]:
    passed("fly")
    return {"flight": 1}


async def sleep_well(state: Trip, database: Database) -> dict[str, int]:
    passed("sleep")
    while not await flown(database):
        await asyncio.sleep(0.02)
    deadly("group")
    return {"hotel": 1}


async def flown(database: Database) -> bool:
    """Whether it is written down that the other branch has ended."""
    story = await database.run(lambda tx: show_saga(tx, SAGA_ID), read_only=True)
    return any(branch.place == "fly" and branch.status == "done" for branch in story.branches)


async def note_paid(state: Trip, event: Paid, tx: Transaction) -> dict[str, int]:
    passed("paid")
    deadly("reply")
    return {"paid": state.paid + 1}


async def tell(state: Trip, tx: Transaction) -> None:
    deadly("end")


trip = Saga(
    "trip",
    Trip,
    [
        parallel(compensatable(fly, undo=NO_EFFECT, timeout=30), compensatable(sleep_well, undo=NO_EFFECT, timeout=30)),
        compensatable(await_event(Paid, by="payment", then=note_paid, timeout=120), undo=NO_EFFECT, name="payment"),
        retriable(tell),
    ],
)


async def live(url: str) -> None:
    telemetry = Telemetry("waiter")
    database = Database(url, telemetry=telemetry)
    await database.start()
    await create_tables(database, [saga_tables, outbox_tables])
    await database.run(lambda tx: trip.start(tx, Trip(), saga_id=SAGA_ID))
    engine = SagaEngine(database, telemetry, [trip], {Database: database}, lease=3.0, poll=0.05)
    await engine.start()
    sent = FOLDER / "sent"
    async with asyncio.timeout(60):
        while (story := await database.run(lambda tx: show_saga(tx, SAGA_ID), read_only=True)).status == "running":
            if story.step == "payment" and story.not_yet_since is not None and not sent.exists():
                sent.touch()
                [expected] = expected_by([trip])
                event = Paid(payment="p")
                await database.run(
                    lambda tx: Replies(telemetry).handle(expected, event, event.to_message("bank"), tx)  # noqa: B023
                )
            await asyncio.sleep(0.01)
    await engine.stop()
    await database.close()
    lines = (FOLDER / "passed").read_text().split()
    told: dict[str, Any] = {"status": story.status, "state": story.state, "passed": lines}
    sys.stdout.write(json.dumps(told))


if __name__ == "__main__":
    asyncio.run(live(sys.argv[1]))
