"""A desk that charges people, whose requests have idempotency keys."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import orjson
from pydantic import BaseModel, SecretStr
from sqlalchemy import Column, Integer, MetaData, String, Table, func, insert, select

from microkit.auth.principal import Principal
from microkit.contract import SIGNED_IN, Contract, Operation, post, put
from microkit.db import Database, Transaction
from microkit.telemetry import Telemetry
from microkit.web import Surface, WebApp

charge_tables = MetaData()
charges = Table(
    "charge", charge_tables, Column("id", Integer, primary_key=True), Column("payer", String), Column("amount", Integer)
)


class NewCharge(BaseModel):
    amount: int


class Charge(NewCharge):
    id: int


class NewPin(BaseModel):
    pin: SecretStr


class Charges(Contract, service="charges", prefix="/charges", allow=SIGNED_IN):
    @post("", status=201)
    async def create(self, body: NewCharge) -> Charge: ...

    @put("/latest")
    async def replace(self, body: NewCharge) -> Charge: ...

    @post("/pin", status=201)
    async def set_pin(self, body: NewPin) -> int: ...


class Desk:
    """The service's handlers, and what a test does to them."""

    def __init__(self) -> None:
        self.calls = 0
        self.before: Callable[[], Awaitable[None]] | None = None

    def hold(self) -> tuple[asyncio.Event, asyncio.Event]:
        """Handlers wait: the first event says that one does, the second lets it go on."""
        entered, leave = asyncio.Event(), asyncio.Event()

        async def wait() -> None:
            entered.set()
            await leave.wait()

        self.before = wait
        return entered, leave

    async def create(self, body: NewCharge, tx: Transaction, caller: Principal) -> Charge:
        self.calls += 1
        if self.before is not None:
            await self.before()
        done = await tx.execute(
            insert(charges).values(payer=caller.subject, amount=body.amount).returning(charges.c.id)
        )
        return Charge(id=done.scalar_one(), amount=body.amount)

    async def replace(self, body: NewCharge, tx: Transaction, caller: Principal) -> Charge:
        return await self.create(body, tx, caller)

    async def set_pin(self, body: NewPin, tx: Transaction, caller: Principal) -> int:
        return (await self.create(NewCharge(amount=len(body.pin)), tx, caller)).id


async def verify(token: str) -> Principal:
    return Principal(token)


def app_of(desk: Desk, database: Database) -> WebApp:
    operations: list[tuple[Operation[..., Any], Callable[..., Awaitable[Any]]]] = [
        (Charges.create, desk.create),
        (Charges.replace, desk.replace),
        (Charges.set_pin, desk.set_pin),
    ]
    surface = Surface("charges", operations=operations)
    return WebApp(surface, telemetry=Telemetry("charges"), verify=verify, database=database)


class Reply(BaseModel):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)

    @property
    def replayed(self) -> bool:
        return self.headers.get("idempotency-replayed") == "true"


async def ask(
    app: WebApp,
    body: object,
    key: str | None = "key-1",
    *,
    who: str = "ada",
    method: str = "POST",
    path: str = "/charges",
) -> Reply:
    raw = orjson.dumps(body)
    headers = {"content-type": "application/json", "content-length": str(len(raw)), "authorization": f"Bearer {who}"}
    if key is not None:
        headers["idempotency-key"] = key
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(name.encode(), text.encode()) for name, text in headers.items()],
    }
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.request", "body": raw}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    await app(scope, receive, send)
    found = {name.decode(): text.decode() for name, text in sent[0]["headers"]}
    return Reply(status=sent[0]["status"], headers=found, body=sent[1]["body"])


async def count(database: Database) -> int:
    async with database.transaction(read_only=True) as tx:
        return await tx.scalar(select(func.count()).select_from(charges)) or 0
