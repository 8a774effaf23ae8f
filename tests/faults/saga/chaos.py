"""Sagas while everything on their way is killed: ``chaos.py PLAN`` (JSON). Prints what became of them.

Two engines, each a process of its own, carry sagas on in one PostgreSQL. A *starter* begins them a few at a time. Again
and again one of the engines ends by a real SIGKILL, at a random moment, and is begun anew; now and then one is stopped
for longer than its lease and goes on as if nothing had been, or the database is shut down as ``pg_ctl stop -m
immediate`` does it, and recovers. What sagas do elsewhere goes to a *receiver*, a process that answers over HTTP, does
what it is asked once for each idempotency key, counts how often it was asked, and sometimes breaks off instead of
answering. A *watcher* looks for sagas that nobody carries on.

All of them are forked from this process, which has imported everything and started nothing, so that each is a real
process and yet starts in a moment.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid5

import aiohttp
import sqlalchemy as sa
from aiohttp import web

from microkit.db import Database
from microkit.db.migration import create_tables, migrate
from microkit.saga import SagaEngine
from microkit.saga.tables import saga as saga_table
from microkit.saga.tables import saga_step
from microkit.servers.ports import free_ports
from microkit.servers.postgres import PostgresServer
from microkit.telemetry import Telemetry
from microkit.testing.folder import short_lived
from tests.faults.forking import ended, forked, running, succeed, told_to_end
from tests.faults.saga.order import EXPECTED, ORDER, Elsewhere, Expected, Order, effect, own, refused_at

QUEUE: Final = UUID(int=4)
LOST_ANSWERS: Final = 0.03


@dataclass(frozen=True)
class Plan:
    sagas: int
    kills: int
    restarts: int
    pauses: int
    lease: float
    patience: float = 120.0
    """Seconds that all sagas may take to end when the killing is over."""
    seed: int = 1


@dataclass
class Town:
    """Where everything is, for the processes that are forked."""

    plan: Plan
    server: PostgresServer
    folder: Path
    port: int
    pipe: tuple[int, int] = field(default_factory=os.pipe)

    def database(self) -> Database:
        url = f"{self.server.url}/postgres".replace("postgresql:", "postgresql+asyncpg:", 1)
        return Database(url, telemetry=Telemetry("chaos", exporter="none", log_level="CRITICAL"))

    @property
    def receiver(self) -> str:
        return f"http://127.0.0.1:{self.port}"


# What the processes do.


async def prepare(town: Town) -> None:
    database = town.database()
    await migrate(database, None)
    await create_tables(database, own)
    await database.close()


async def receive(town: Town) -> None:
    """The other service. It does what a key asks for once, and forgets nothing."""
    applied: dict[str, str] = {}
    asked: Counter[str] = Counter()

    async def apply(request: web.Request) -> web.Response:
        key = request.headers["Idempotency-Key"]
        asked[key] += 1
        await asyncio.sleep(random.uniform(0, 0.06))
        applied.setdefault(key, request.match_info["what"])
        if random.random() < LOST_ANSWERS and request.transport is not None:
            request.transport.abort()
        return web.Response()

    async def report(_: web.Request) -> web.Response:
        return web.json_response({"applied": list(applied.items()), "repeated": sum(n > 1 for n in asked.values())})

    app = web.Application()
    app.add_routes([web.post("/{what}", apply), web.get("/report", report)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", town.port).start()
    await asyncio.Event().wait()


async def begin_sagas(town: Town) -> None:
    """Begins as many sagas as each line says; the same one again if the answer to the first time was lost."""
    database = town.database()
    number = 0
    while wanted := int(await asyncio.to_thread(_line, town.pipe[0])):
        for number in range(number, number + wanted):  # noqa: B020  goes on where it ended
            while True:
                try:
                    await database.run(
                        lambda tx, n=number: ORDER.start(tx, Order(refused=refused_at(n)), saga_id=uuid5(QUEUE, str(n)))  # type: ignore[misc]  # mypy cannot infer a lambda with a default
                    )
                    break
                except Exception:  # noqa: BLE001  the database is away
                    await asyncio.sleep(0.05)
        number += 1
    await database.close()


def _line(pipe: int) -> str:
    line = b""
    while not line.endswith(b"\n"):
        line += os.read(pipe, 1)
    return line.decode()


async def carry_on(town: Town) -> None:
    """An engine, until SIGTERM. It must leave no connection of its pool in use."""
    database = town.database()
    async with aiohttp.ClientSession() as session:
        there = {Elsewhere: Elsewhere(session, town.receiver)}
        engine = SagaEngine(
            database, Telemetry("chaos", exporter="none", log_level="CRITICAL"), [ORDER], there,
            lease=town.plan.lease, concurrency=16, poll=0.1,
        )  # fmt: skip
        await engine.start()
        await told_to_end()
        await engine.stop(10)
    in_use = database.engine.pool.checkedout()  # type: ignore[attr-defined]  # of the pool that it has
    await database.close()
    if in_use:
        raise RuntimeError(f"{in_use} connections were never given back")


async def watch(town: Town) -> None:
    """Until SIGTERM, notes sagas that are due since a lease ago and that nobody takes: stuck for two.

    What a transaction under way has locked is in somebody's hands. After the database was away, engines have as long to
    come back.
    """
    told = asyncio.create_task(told_to_end())
    database, lease = town.database(), town.plan.lease
    overdue = sa.text(
        "SELECT id, extract(epoch FROM clock_timestamp() - next_at) FROM saga "
        f"WHERE next_at < clock_timestamp() - interval '{lease} seconds' FOR UPDATE SKIP LOCKED"
    )
    found: dict[str, float] = {}
    not_before = 0.0
    while not told.done():
        await asyncio.sleep(0.2)
        try:
            async with database.transaction() as tx:
                rows = (await tx.execute(overdue)).all()
        except Exception:  # noqa: BLE001  the database is away
            not_before = time.monotonic() + 3 * lease
            continue
        if time.monotonic() > not_before:
            for saga_id, seconds in rows:
                found[str(saga_id)] = max(float(seconds), found.get(str(saga_id), 0.0))
    (town.folder / "overdue").write_text(json.dumps(found))
    await database.close()


async def all_end(town: Town) -> None:
    """Waits until no saga is left that has not ended.

    Raises:
        TimeoutError: it takes longer than the plan says.
    """
    database = town.database()
    left = sa.select(sa.func.count()).where(saga_table.c.status.not_in(["completed", "compensated"]))
    async with asyncio.timeout(town.plan.patience):
        while True:
            with suppress(ConnectionError, OSError):
                async with database.transaction(read_only=True) as tx:
                    if not (await tx.execute(left)).scalar():
                        break
            await asyncio.sleep(0.1)
    await database.close()


async def report(town: Town) -> None:
    """Compares what is there with what should be, and prints it."""
    database = town.database()
    async with database.transaction(read_only=True) as tx:
        sagas = (await tx.execute(sa.select(saga_table))).mappings().all()
        steps = (await tx.execute(sa.select(saga_step).order_by(saga_step.c.saga_id, saga_step.c.seq))).mappings().all()
        effects = (await tx.execute(sa.select(effect.c.saga_id, effect.c.what).order_by(effect.c.place))).all()
    await database.close()
    async with aiohttp.ClientSession() as session, session.get(f"{town.receiver}/report") as answer:
        elsewhere = await answer.json()
    local: dict[UUID, list[str]] = {}
    remote: dict[UUID, list[str]] = {}
    history: dict[UUID, list[Any]] = {}
    for saga_id, what in effects:
        local.setdefault(saga_id, []).append(what)
    for key, what in elsewhere["applied"]:
        remote.setdefault(UUID(key.split(":")[0]), []).append(what)
    for step in steps:
        history.setdefault(step["saga_id"], []).append(step)
    wanted = {uuid5(QUEUE, str(number)): EXPECTED[refused_at(number)] for number in range(town.plan.sagas)}
    there = {row["id"]: row for row in sagas}
    wrong = {
        str(saga_id): problems
        for saga_id, row in there.items()
        if (
            problems := list(
                _problems(row, wanted[saga_id], local.get(saga_id, []), remote.get(saga_id, []), history[saga_id])
            )
        )
    }
    found = {
        "sagas": len(there),
        "ended": Counter(str(row["status"]) for row in sagas),
        "lost": len(wanted.keys() - there.keys()),
        "wrong": wrong,
        "overdue": json.loads((town.folder / "overdue").read_text()),
        "repeated_asks": elsewhere["repeated"],
        "attempts_cut_off": sum(row["epoch"] - 1 for row in sagas),
    }
    (town.folder / "report").write_text(json.dumps(found))


def _problems(row: Any, wanted: Expected, local: list[str], remote: list[str], history: list[Any]) -> Iterator[str]:
    """What is not as it should be with one saga."""
    if row["status"] != wanted.status:
        yield f"status {row['status']}"
    if row["lease_owner"] is not None or row["next_at"] is not None:
        yield "somebody holds it still"
    if local != wanted.local:
        yield f"effects here {local}"
    if remote != wanted.remote:
        yield f"effects elsewhere {remote}"
    done = [(step["step"], step["direction"]) for step in history if step["status"] == "done"]
    if done != wanted.done:
        yield f"steps done {done}"
    if [step["seq"] for step in history] != list(range(1, len(history) + 1)):
        yield f"transitions {[step['seq'] for step in history]}"
    if Counter(row["state"]["trail"]) != wanted.all:
        yield f"state {row['state']['trail']}"


# The storm.


def storm(town: Town) -> dict[str, Any]:
    plan, chance = town.plan, random.Random(town.plan.seed)
    succeed(prepare(town), "making the tables")
    receiver, starter, watcher = (forked(each(town)) for each in (receive, begin_sagas, watch))
    engines = [forked(carry_on(town)) for _ in range(2)]
    with running(others := [receiver, starter, watcher]), running(engines):
        blows = ["kill"] * plan.kills + ["restart"] * plan.restarts + ["pause"] * plan.pauses
        chance.shuffle(blows)
        begun = 0
        for number, blow in enumerate(blows, 1):
            wanted = plan.sagas * number // len(blows) - begun
            begun += wanted
            os.write(town.pipe[1], f"{wanted}\n".encode() if wanted else b"")
            time.sleep(chance.uniform(0.1, 0.9))
            strike(town, blow, engines, chance)
        os.write(town.pipe[1], b"0\n")
        if ended(starter) != 0:
            raise SystemExit("beginning sagas failed")
        others.remove(starter)
        succeed(all_end(town), "coming to an end")
        for child in (*engines, watcher):
            os.kill(child, signal.SIGTERM)
        codes = [ended(child) for child in (*engines, watcher)]
        engines.clear()
        others.remove(watcher)
        if any(codes):
            raise SystemExit(f"engines and watcher ended with {codes}")
        succeed(report(town), "the report")
    return {"kills": plan.kills, "restarts": plan.restarts, "pauses": plan.pauses}


def strike(town: Town, blow: str, engines: list[int], chance: random.Random) -> None:
    victim = chance.randrange(len(engines))
    match blow:
        case "kill":
            os.kill(engines[victim], signal.SIGKILL)
            if (code := ended(engines[victim])) != -signal.SIGKILL:
                raise SystemExit(f"an engine had ended by itself, with {code}")
            engines[victim] = forked(carry_on(town))
        case "pause":
            os.kill(engines[victim], signal.SIGSTOP)
            time.sleep(chance.uniform(1.5, 2.5) * town.plan.lease)
            os.kill(engines[victim], signal.SIGCONT)
        case "restart":
            os.kill(town.server.pid, signal.SIGQUIT)  # what pg_ctl stop -m immediate sends: nothing is put in order
            while town.server.running:
                time.sleep(0.01)
            time.sleep(chance.uniform(0, 1))
            town.server.start()


def main() -> None:
    plan = Plan(**json.loads(sys.argv[1]))
    began = time.monotonic()
    with short_lived("chaos-") as folder:
        server = PostgresServer(folder / "pg")
        server.start()
        try:
            town = Town(plan, server, folder, free_ports(1)[0])
            found = {**storm(town), **json.loads((folder / "report").read_text())}
        finally:
            server.stop()
    sys.stdout.write(json.dumps({**found, "seconds": round(time.monotonic() - began)}))


if __name__ == "__main__":
    main()
