"""One saga whose process is killed in the middle of it: ``traced.py URL``. Prints which trace each attempt was in."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from dataclasses import dataclass

import sqlalchemy as sa
from pydantic import BaseModel

from microkit.db import Database, Transaction
from microkit.db.migration import create_tables
from microkit.saga import Saga, SagaEngine, StepContext, compensatable, pivot, retriable
from microkit.saga.tables import metadata as saga_tables
from microkit.saga.tables import saga as saga_table
from microkit.telemetry import Telemetry, TraceRing
from microkit.telemetry.propagation import trace_id_hex
from tests.faults.forking import ended, forked


class Nothing(BaseModel):
    """There is nothing to carry from step to step."""


@dataclass(frozen=True)
class Diary:
    """A pipe to the parent: one line for each attempt of a step."""

    pipe: int

    def write(self, step: StepContext, name: str) -> None:
        entry = {"process": os.getpid(), "step": name, "attempt": step.attempt, "trace_id": trace_id_hex()}
        os.write(self.pipe, f"{json.dumps(entry)}\n".encode())


async def seat(state: Nothing, tx: Transaction, step: StepContext, diary: Diary) -> None:
    diary.write(step, "seat")


async def free_seat(state: Nothing, tx: Transaction) -> None: ...


async def pay(state: Nothing, step: StepContext, diary: Diary) -> None:
    diary.write(step, "pay")
    if step.attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)


async def tell(state: Nothing, tx: Transaction, step: StepContext, diary: Diary) -> None:
    diary.write(step, "tell")


TRIP = Saga("trip", Nothing, [compensatable(seat, undo=free_seat), pivot(pay, timeout=5), retriable(tell)])


async def begin(url: str, diary: Diary) -> None:
    """Starts the saga, as a request would: inside a span."""
    ring = TraceRing()
    telemetry = Telemetry("travel", ring=ring)
    database = Database(url, telemetry=telemetry)
    await create_tables(database, saga_tables)
    with telemetry.span("POST /trips"):
        async with database.transaction() as tx:
            await TRIP.start(tx, Nothing())
        trace_id = trace_id_hex()
    [span] = [each for each in ring.recent(100) if each.name == "POST /trips"]
    os.write(diary.pipe, f"{json.dumps({'begun_in': trace_id, 'span': span.span_id})}\n".encode())
    await database.close()


async def carry_on(url: str, diary: Diary) -> None:
    """An engine, until the saga has ended. Tells of the spans that it leaves."""
    ring = TraceRing()
    telemetry = Telemetry("travel", ring=ring, log_level="CRITICAL")
    database = Database(url, telemetry=telemetry)
    engine = SagaEngine(database, telemetry, [TRIP], {Diary: diary}, lease=0.5, poll=0.05)
    await engine.start()
    status = None
    while status != "completed":
        await asyncio.sleep(0.02)
        async with database.transaction(read_only=True) as tx:
            status = await tx.scalar(sa.select(saga_table.c.status))
    await engine.stop(5)
    spans = [
        {"name": span.name, "trace_id": span.trace_id, "parent_id": span.parent_id}
        for span in ring.recent(500)
        if "trip" in span.name
    ]
    os.write(diary.pipe, f"{json.dumps({'spans': spans})}\n".encode())
    await database.close()


def main() -> None:
    reading, writing = os.pipe()
    diary, url = Diary(writing), sys.argv[1]
    codes = [ended(forked(part(url, diary))) for part in (begin, carry_on, carry_on)]
    os.close(writing)
    with os.fdopen(reading) as pipe:
        entries = [json.loads(line) for line in pipe]
    sys.stdout.write(json.dumps({"codes": codes, "entries": entries}))


if __name__ == "__main__":
    main()
