"""The request that a service really serves: a row and its event, committed on PostgreSQL, 16 at once.

``python -m benchmarks.http --postgres`` runs it, with fsync on. Both sides have telemetry as ``benchmarks.contenders``
says, and neither has its relay running, which is another benchmark. Rows and events are counted afterwards.
"""
# ruff: noqa: PLC0415  a contender's process loads what that contender needs and nothing else

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import DateTime, MetaData, String, func, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from benchmarks.contenders import BODY, AccessLog, App, Bill, Message, NewBill, provider
from benchmarks.http import POST_HEADERS
from microkit.auth.principal import Principal
from microkit.db import Transaction
from microkit.message import Event

AT_ONCE = 16
REQUESTS = 4_000


class Base(DeclarativeBase):
    metadata = MetaData()


class BillRow(Base):
    __tablename__ = "bill"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    owner: Mapped[str] = mapped_column(String(40))
    payee: Mapped[str] = mapped_column(String(100))
    reference: Mapped[str] = mapped_column(String(60))
    amount: Mapped[Decimal]
    due_at: Mapped[Any] = mapped_column(DateTime(timezone=True))
    paid: Mapped[bool]

    def to_bill(self) -> Bill:
        return Bill(
            id=self.id,
            payee=self.payee,
            reference=self.reference,
            amount=self.amount,
            due_at=self.due_at,
            paid=self.paid,
        )


def row_of(body: NewBill, owner: str) -> BillRow:
    return BillRow(
        id=uuid4(),
        owner=owner,
        payee=body.payee,
        reference=body.reference,
        amount=body.amount,
        due_at=body.due_at,
        paid=False,
    )


class BillCreated(Event, topic="billing.bills", key="bill_id"):
    bill_id: UUID
    owner: str
    amount: Decimal


Ready = tuple[App, Callable[[], Awaitable[None]]]


async def microkit(url: str) -> Ready:
    """microkit: ``tx.add``, ``tx.publish``, everything on."""
    import os

    from microkit.contract import Contract, post
    from microkit.db import Database
    from microkit.db.migration import create_tables
    from microkit.outbox import install
    from microkit.outbox import tables as outbox
    from microkit.telemetry import Telemetry
    from microkit.telemetry.logs import configure
    from microkit.web import Surface, WebApp

    class Billing(Contract, service="billing", prefix="/bills", allow="member"):
        @post("", status=201)
        async def create(self, body: NewBill) -> Bill: ...

    async def create(body: NewBill, tx: Transaction, caller: Principal) -> Bill:
        row = row_of(body, caller.subject)
        tx.add(row)
        tx.publish(BillCreated(bill_id=row.id, owner=row.owner, amount=row.amount))
        return row.to_bill()

    caller = Principal("6f1c0d1e", frozenset({"member"}))

    async def verify(token: str) -> Principal:
        return caller

    configure(open(os.devnull, "w"), format="json")  # noqa: ASYNC230, SIM115  as long as the process
    telemetry = Telemetry("billing", provider=provider(1.0))
    database = Database(url, telemetry=telemetry, pool_size=AT_ONCE, max_overflow=0)
    await database.start()
    await create_tables(database, [Base.metadata, outbox.metadata])
    install(database, "billing")
    surface = Surface("billing", operations=[(Billing.create, create)])
    return WebApp(surface, telemetry=telemetry, verify=verify, database=database), database.close


async def fastapi(url: str) -> Ready:
    return await _fastapi(url, full=False)


async def fastapi_full(url: str) -> Ready:
    return await _fastapi(url, full=True)


async def _fastapi(url: str, *, full: bool) -> Ready:
    """FastAPI, SQLAlchemy's session and faststream-outbox's broker, as their documentation has them."""
    from fastapi import FastAPI
    from faststream_outbox import OutboxBroker, make_outbox_table

    engine = create_async_engine(url, pool_size=AT_ONCE, max_overflow=0)
    table = make_outbox_table(Base.metadata, table_name="outbox")
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    broker = OutboxBroker(engine, outbox_table=table)
    await broker.connect()
    sessions: async_sessionmaker[AsyncSession] = async_sessionmaker(engine, expire_on_commit=False)
    app = FastAPI()

    @app.post("/bills", status_code=201)
    async def create(body: NewBill) -> Bill:
        async with sessions() as session, session.begin():
            row = row_of(body, "6f1c0d1e")
            session.add(row)
            event = BillCreated(bill_id=row.id, owner=row.owner, amount=row.amount)
            await broker.publish(event, queue="billing.bills", session=session)
            return row.to_bill()

    if full:
        from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
        from prometheus_client import CollectorRegistry
        from prometheus_fastapi_instrumentator import Instrumentator

        app.add_middleware(AccessLog)
        Instrumentator(registry=CollectorRegistry()).instrument(app)
        FastAPIInstrumentor.instrument_app(app, tracer_provider=provider(1.0))
    return app, engine.dispose


MAKERS: dict[str, Callable[[str], Awaitable[Ready]]] = {
    "fastapi": fastapi,
    "fastapi_full": fastapi_full,
    "microkit": microkit,
}


async def _worker(app: App, left: list[int], statuses: list[int]) -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": BODY, "more_body": False}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    while left[0] > 0:
        left[0] -= 1
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "server": ("127.0.0.1", 3003),
            "client": ("127.0.0.1", 50000),
            "scheme": "http",
            "root_path": "",
            "method": "POST",
            "path": "/bills",
            "raw_path": b"/bills",
            "query_string": b"",
            "headers": list(POST_HEADERS),
            "state": {},
        }
        await app(scope, receive, send)


async def measure(name: str, url: str) -> dict[str, float]:
    """Requests a second and this process's CPU microseconds a request."""
    app, close = await MAKERS[name](url)
    statuses: list[int] = []
    await asyncio.gather(*(_worker(app, [REQUESTS // 64], statuses) for _ in range(AT_ONCE)))
    warm = len(statuses)
    left = [REQUESTS]
    cpu, began = time.process_time(), time.perf_counter()
    await asyncio.gather(*(_worker(app, left, statuses) for _ in range(AT_ONCE)))
    took, used = time.perf_counter() - began, time.process_time() - cpu
    await close()
    if len(statuses) - warm != REQUESTS or set(statuses) != {201}:
        raise SystemExit(f"{name}: {len(statuses) - warm} answers of {REQUESTS}, {set(statuses)}")
    await _check(url, len(statuses))
    return {"per_s": REQUESTS / took, "cpu_us": used / REQUESTS * 1e6}


async def _check(url: str, expected: int) -> None:
    """Refuses figures of a contender that did not do the work."""
    from sqlalchemy import table

    engine = create_async_engine(url)
    async with engine.connect() as connection:
        for name in ("bill", "outbox"):
            rows = (await connection.execute(select(func.count()).select_from(table(name)))).scalar_one()
            if rows != expected:
                raise SystemExit(f"{rows} rows in {name}, not {expected}")
    await engine.dispose()


def all_rounds(rounds: int) -> dict[str, dict[str, float]]:
    """Each contender's best over the rounds, in which they take turns, each with an empty database."""
    from microkit.testing.postgres import cluster

    best: dict[str, dict[str, float]] = {name: {} for name in MAKERS}
    with cluster(durable=True) as server:
        for _ in range(rounds):
            for name, row in best.items():
                database = server.create()
                command = [sys.executable, "-m", "benchmarks.http", "--commit", name, "--url", server.url(database)]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                found = json.loads(done.stdout)
                row["per_s"] = max(found["per_s"], row.get("per_s", 0.0))
                row["cpu_us"] = min(found["cpu_us"], row.get("cpu_us", found["cpu_us"]))
                server.drop(database)
    return best


def summary(best: dict[str, dict[str, float]]) -> dict[str, float]:
    ours, theirs = best["microkit"], best["fastapi_full"]
    return {
        "tx_per_s": round(ours["per_s"]),
        "tx_cpu_us": round(ours["cpu_us"]),
        "tx_ratio_fastapi": round(ours["per_s"] / theirs["per_s"], 2),
        "tx_cpu_ratio_fastapi": round(theirs["cpu_us"] / ours["cpu_us"], 2),
    }


def show(best: dict[str, dict[str, float]]) -> None:
    print(f"{'a row and its event':<22}{'per second':>12}{'CPU µs':>9}")
    for name, row in best.items():
        print(f"{name:<22}{row['per_s']:>12.0f}{row['cpu_us']:>9.0f}")
    print("target: tx_ratio_fastapi ≥ 2")
    print(json.dumps(summary(best)))
