"""Sagas of three steps, each made durable before the next begins: PostgreSQL with fsync on, 32 at once.

    python -m benchmarks.saga [--json] [PART …]

In sagas a second: ``sagas`` is 32 callers in the engine's own process, each of which starts a saga, waits for its end
and starts the next, as DBOS is measured; ``sagas_million_done`` is the same beside a million sagas that ended before,
in rounds that take turns with those of ``sagas``; each is the median of its rounds, as their ratio is.

``waiting`` carries on sagas
that wait in the table, 32 at once, from the engine's start to the last end, and ``local`` does so with steps that each
insert a row in their transaction, by a statement that was prepared. ``resume`` is in seconds: a process is ended by
SIGKILL with ten thousand sagas in their second step; from the start of another engine to the moment when the last of
them has made that step, with ten seconds of lease to wait for. ``dbos`` is DBOS 3.4 on the same server, a workflow of
three steps, 32 callers that each wait for the end.

Each saga is looked at afterwards: its end, its state and the three attempts in its history.
"""
# ruff: noqa: PLC0415  a contender's process loads what that contender needs and nothing else

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final
from uuid import uuid4

import sqlalchemy as sa
from pydantic import BaseModel

SAGAS: Final = 6_000
WARM: Final = 500
STARTED: Final = 2_560
ROUNDS: Final = 5
WORKFLOWS: Final = 600
AT_ONCE: Final = 32
MILLION: Final = 1_000_000
INTERRUPTED: Final = 10_000
LEASE: Final = 10.0
PAUSE: Final = 0.05
"""Seconds between two looks at a counter: a look costs some milliseconds."""
WAITS: Final = ("resume",)
"""Parts whose figure is a time, and no rate."""

_DONE: Final = """
    INSERT INTO saga (id, name, version, fingerprint, state, status, direction, step, attempts, seq, epoch, context,
                      created_at, updated_at)
    SELECT gen_random_uuid(), 'order', 1, $2, '{"item": "chair", "done": ["reserve", "charge", "ship"]}', 'completed',
           'action', NULL, 1, 3, 1, '{}', clock_timestamp() - interval '1 day', clock_timestamp() - interval '1 day'
    FROM generate_series(1, $1::int)
"""
_DONE_STEPS: Final = """
    INSERT INTO saga_step (saga_id, seq, step, direction, attempt, status, started_at, ended_at)
    SELECT saga.id, made.seq, made.step, 'action', 1, 'done', saga.created_at, saga.updated_at
    FROM saga, (VALUES (1, 'reserve'), (2, 'charge'), (3, 'ship')) AS made (seq, step)
"""


class Order(BaseModel):
    """The state."""

    item: str
    done: list[str] = []


own_tables = sa.MetaData()
effect = sa.Table(
    "effect",
    own_tables,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("saga_id", sa.Uuid, nullable=False),
    sa.Column("what", sa.Text, nullable=False),
)


@dataclass
class Service:
    """A service with nothing but its database."""

    database: Any
    telemetry: Any


@asynccontextmanager
async def service(url: str) -> AsyncIterator[Service]:
    from microkit.db import Database
    from microkit.db.migration import create_tables
    from microkit.saga.tables import metadata
    from microkit.telemetry import Telemetry

    telemetry = Telemetry("orders", log_level="WARNING")
    database = Database(url, telemetry=telemetry)
    await database.start()
    await create_tables(database, [metadata, own_tables])
    try:
        yield Service(database, telemetry)
    finally:
        await database.close()


def orders() -> Any:
    """Three steps in another system: what is measured is that their outcomes are on record."""
    from microkit.saga import Saga, compensatable, pivot, retriable

    async def reserve(state: Order) -> dict[str, list[str]]:
        return {"done": [*state.done, "reserve"]}

    async def release(state: Order) -> None: ...

    async def charge(state: Order) -> dict[str, list[str]]:
        return {"done": [*state.done, "charge"]}

    async def ship(state: Order) -> dict[str, list[str]]:
        return {"done": [*state.done, "ship"]}

    steps = [compensatable(reserve, undo=release, timeout=5), pivot(charge, timeout=5), retriable(ship, timeout=5)]
    return Saga("order", Order, steps)


def local_orders() -> Any:
    """Three steps in the service's own database."""
    from microkit.db import PreparedInsert, Transaction
    from microkit.saga import Saga, StepContext, compensatable, pivot, retriable

    row = PreparedInsert(sa.insert(effect), ("id", "saga_id", "what"))

    async def write(state: Order, tx: Transaction, step: StepContext) -> dict[str, list[str]]:
        await tx.insert(row, [{"id": uuid4(), "saga_id": step.saga_id, "what": step.step}])
        return {"done": [*state.done, step.step]}

    write.__annotations__ |= {"tx": Transaction, "step": StepContext}
    steps = [
        compensatable(write, undo=write, name="reserve"),
        pivot(write, name="charge"),
        retriable(write, name="ship"),
    ]
    return Saga("order", Order, steps)


async def enrol(running: Service, saga: Any, count: int) -> None:
    """Starts so many, a few in a transaction, as callers would who have more to do."""
    for begin in range(0, count, 500):
        async with running.database.transaction() as tx:
            for _ in range(begin, min(begin + 500, count)):
                await saga.start(tx, Order(item="chair"))


async def settle(running: Service) -> None:
    """Leaves the tables as autovacuum would find and leave them, and nothing of the filling to be written any more."""
    async with administrator(running.database) as connection:
        await connection.execute("VACUUM ANALYZE", timeout=90)
        await connection.execute("CHECKPOINT", timeout=90)


@asynccontextmanager
async def administrator(database: Any) -> AsyncIterator[Any]:
    import asyncpg  # type: ignore[import-untyped]  # it ships no types

    connection = await asyncpg.connect(database.engine.url.render_as_string(False).replace("+asyncpg", ""))
    try:
        yield connection
    finally:
        await connection.close()


async def ended(running: Service) -> int:
    """How many of this run have ended, by the metrics of the engine: no query takes part in the measurement."""
    labels = {"saga": "order", "status": "completed"}
    return int(running.telemetry.registry.get_sample_value("microkit_saga_ended_total", labels) or 0)


async def check(running: Service, count: int, *, before: int = 0) -> None:
    """Raises SystemExit where a saga did not do all of its work once."""
    async with administrator(running.database) as connection:
        right = await connection.fetchval(
            """
            SELECT count(*) FROM saga WHERE status = 'completed' AND state->>'item' = 'chair'
               AND (state->'done')::text = '["reserve","charge","ship"]' AND next_at IS NULL AND seq = 3
               AND (SELECT array_agg(step || status ORDER BY seq) FROM saga_step WHERE saga_id = saga.id)
                   = ARRAY['reservedone', 'chargedone', 'shipdone']
               AND created_at > clock_timestamp() - interval '1 hour'
            """,
            timeout=60,
        )
        total = await connection.fetchval("SELECT count(*) FROM saga", timeout=60)
    if (right, total) != (count, count + before):
        raise SystemExit(f"{right} of {count} sagas are as they should be, of {total} in all")


# The parts.


async def sagas(empty: str, full: str) -> dict[str, float]:
    saga = orders()
    found: dict[str, list[float]] = {"sagas": [], "sagas_million_done": []}
    async with service(empty) as alone, service(full) as beside:
        await fill(beside, saga, MILLION)
        halls = {"sagas": alone, "sagas_million_done": beside}
        for count in (WARM, *[STARTED] * ROUNDS):  # the first ones have connections opened and statements prepared
            for name, running in halls.items():
                await settle(running)
                found[name].append(await _started(running, saga, count // AT_ONCE))
        total = sum(count // AT_ONCE * AT_ONCE for count in (WARM, *[STARTED] * ROUNDS))
        await check(alone, total)
        await check(beside, total, before=MILLION)
    rates = {name: statistics.median(of_rounds[1:]) for name, of_rounds in found.items()}
    ratios = [full / none for none, full in zip(*(of_rounds[1:] for of_rounds in found.values()), strict=True)]
    return {**rates, "sagas_million_ratio": statistics.median(ratios)}


async def fill(running: Service, saga: Any, done: int) -> None:
    async with administrator(running.database) as connection:
        await connection.execute(_DONE, done, saga.fingerprint, timeout=90)
        await connection.execute(_DONE_STEPS, timeout=90)


async def _started(running: Service, saga: Any, each: int) -> float:
    """Sagas a second of 32 callers, each of which starts so many, one after the other."""
    from microkit.saga import SagaEngine

    over: dict[Any, asyncio.Event] = defaultdict(asyncio.Event)
    engine = SagaEngine(running.database, running.telemetry, [saga], {}, concurrency=AT_ONCE)
    done = engine._done  # noqa: SLF001  the first to know that a saga has left the engine

    def told(run: Any) -> None:
        done(run)
        over[run.held.id].set()

    engine._done = told  # type: ignore[method-assign]  # noqa: SLF001  as above

    async def caller() -> None:
        for _ in range(each):
            saga_id = await running.database.run(lambda tx: saga.start(tx, Order(item="chair")))
            await over[saga_id].wait()
            del over[saga_id]

    await engine.start()
    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(AT_ONCE)))
    seconds = time.perf_counter() - began
    await engine.stop()
    return each * AT_ONCE / seconds


async def waiting(url: str) -> dict[str, float]:
    return {"sagas_waiting": await _rate(url, orders())}


async def local(url: str) -> dict[str, float]:
    return {"sagas_local": await _rate(url, local_orders())}


async def _rate(url: str, saga: Any) -> float:
    from microkit.saga import SagaEngine

    async with service(url) as running:
        total = 0
        for count in (WARM, SAGAS):  # as above
            await enrol(running, saga, count)
            await settle(running)
            total += count
            engine = SagaEngine(running.database, running.telemetry, [saga], {}, concurrency=AT_ONCE)
            began = time.perf_counter()
            await engine.start()
            while await ended(running) < total:  # noqa: ASYNC110  a counter is all there is to look at
                await asyncio.sleep(PAUSE)
            seconds = time.perf_counter() - began
            await engine.stop()
        await check(running, total)
    return SAGAS / seconds


async def resume(url: str) -> dict[str, float]:
    from microkit.saga import SagaEngine

    saga = orders()
    async with service(url) as running:
        await enrol(running, saga, INTERRUPTED)
        await settle(running)
        await kill_amid(url)
        engine = SagaEngine(running.database, running.telemetry, [saga], {}, lease=LEASE)
        began = time.perf_counter()
        await engine.start()
        labels = {"saga": "order", "saga_step": "charge", "saga_direction": "action", "outcome": "done"}
        moved = "microkit_saga_step_duration_seconds_count"
        while (running.telemetry.registry.get_sample_value(moved, labels) or 0) < INTERRUPTED:  # noqa: ASYNC110  as above
            await asyncio.sleep(PAUSE)
        seconds = time.perf_counter() - began
        while await ended(running) < INTERRUPTED:  # noqa: ASYNC110  as above
            await asyncio.sleep(PAUSE)
        await engine.stop()
        await check(running, INTERRUPTED)
    return {"resume_10000_s": seconds}


async def kill_amid(url: str) -> None:
    """Has another process carry all sagas to their second step, and ends it there."""
    command = [sys.executable, "-m", "benchmarks.saga", "--contender", "victim", url]
    victim = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    assert victim.stdout is not None
    if (said := await victim.stdout.readline()).strip() != b"ready":
        raise SystemExit(f"the process to be killed said {said!r}")
    victim.kill()
    await victim.wait()


async def victim(url: str) -> dict[str, float]:
    """Never returns: its second step does not."""
    from microkit.saga import Saga, SagaEngine, compensatable, pivot, retriable

    inside = 0

    async def charge(state: Order) -> None:
        nonlocal inside
        inside += 1
        await asyncio.Event().wait()

    first, _, last = orders().steps
    steps = [
        compensatable(first.action, undo=first.undo, name=first.name, timeout=600),
        pivot(charge, timeout=600),
        retriable(last.action, name=last.name, timeout=600),
    ]
    async with service(url) as running:
        saga = Saga("order", Order, steps)
        engine = SagaEngine(running.database, running.telemetry, [saga], {}, lease=LEASE, concurrency=INTERRUPTED)
        await engine.start()
        while inside < INTERRUPTED:  # noqa: ASYNC110  as above
            await asyncio.sleep(PAUSE)
        print("ready", flush=True)
        await asyncio.Event().wait()
    raise AssertionError


def dbos(url: str) -> dict[str, float]:
    """The peer, with its own defaults but for a pool that takes 32 callers and quiet logs."""
    from concurrent.futures import ThreadPoolExecutor

    from dbos import DBOS, DBOSConfig

    config: DBOSConfig = {
        "name": "orders",
        "system_database_url": url.replace("+asyncpg", "+psycopg"),
        "sys_db_pool_size": AT_ONCE,
        "log_level": "ERROR",
    }
    DBOS(config=config)

    @DBOS.step()
    def reserve(done: list[str]) -> list[str]:
        return [*done, "reserve"]

    @DBOS.step()
    def charge(done: list[str]) -> list[str]:
        return [*done, "charge"]

    @DBOS.step()
    def ship(done: list[str]) -> list[str]:
        return [*done, "ship"]

    @DBOS.workflow()
    def order(item: str) -> list[str]:
        return ship(charge(reserve([])))

    DBOS.launch()
    expected = ["reserve", "charge", "ship"]
    with ThreadPoolExecutor(AT_ONCE) as callers:
        list(callers.map(order, ["chair"] * AT_ONCE))
        began = time.perf_counter()
        results = list(callers.map(order, ["chair"] * WORKFLOWS))
        seconds = time.perf_counter() - began
    right = sum(result == expected for result in results)
    kept = len(DBOS.list_workflows(status="SUCCESS", limit=2 * WORKFLOWS))
    DBOS.destroy()
    if right != WORKFLOWS or kept != WORKFLOWS + AT_ONCE:
        raise SystemExit(f"{right} of {WORKFLOWS} workflows are as they should be, {kept} on record")
    return {"dbos": WORKFLOWS / seconds}


PARTS: Final[dict[str, Callable[..., Awaitable[dict[str, float]]]]] = {
    "sagas": sagas,
    "waiting": waiting,
    "local": local,
    "resume": resume,
}
DATABASES: Final = {"sagas": 2}


def run(part: str, *urls: str) -> dict[str, float]:
    import uvloop

    if part == "dbos":
        return dbos(*urls)
    return uvloop.run((victim if part == "victim" else PARTS[part])(*urls))  # type: ignore[arg-type]  # all coroutines


def figures(part: str, *urls: str) -> dict[str, float]:
    """A part in a process and databases of its own, so that none is measured in the heap of another."""
    command = [sys.executable, "-m", "benchmarks.saga", "--contender", part, *urls]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        raise SystemExit(f"{part} broke off: {finished.stderr[-2000:]}{finished.stdout[-2000:]}")
    found: dict[str, float] = json.loads(finished.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="the figures as one JSON object")
    parser.add_argument("--contender", nargs="+", metavar=("NAME", "URL"), help=argparse.SUPPRESS)
    parts = (*PARTS, "dbos")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(parts)}; all if none")
    options = parser.parse_args()
    if options.contender:
        print(json.dumps(run(*options.contender)))
        return
    if unknown := set(options.parts) - set(parts):
        parser.error(f"no part is called {', '.join(sorted(unknown))}; there are {', '.join(parts)}")

    from microkit.testing.postgres import cluster

    found: dict[str, float] = {}
    with cluster(durable=True) as server:
        for part in options.parts or parts:
            urls = [server.url(server.create()) for _ in range(DATABASES.get(part, 1))]
            for name, figure in figures(part, *urls).items():
                found[name] = round(figure, 1 if part in WAITS else 3 if name.endswith("ratio") else None)
                if not options.json:
                    print(f"{name:28} {found[name]:>10,}", flush=True)
    if options.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
