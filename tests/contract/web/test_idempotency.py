"""Idempotency keys, on SQLite and on PostgreSQL: one effect, one reply."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any

import orjson
import pytest
from pydantic import BaseModel, SecretStr
from sqlalchemy import Column, Integer, MetaData, String, Table, func, insert, select, update
from sqlalchemy.exc import OperationalError

from microkit.auth.principal import Principal
from microkit.contract import SIGNED_IN, Contract, Operation, post, put
from microkit.db import CommitUnknown, Database, Transaction, database_now
from microkit.db.migration import create_tables
from microkit.errors import Conflict
from microkit.telemetry import Telemetry
from microkit.web import Surface, WebApp
from microkit.web.idempotency import Idempotency
from microkit.web.tables import idempotency, metadata

pytestmark = pytest.mark.anyio

own = MetaData()
charges = Table(
    "charge", own, Column("id", Integer, primary_key=True), Column("payer", String), Column("amount", Integer)
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


@pytest.fixture
async def charged(database: Database) -> Database:
    await create_tables(database, metadata)
    await create_tables(database, own)
    return database


async def count(database: Database) -> int:
    async with database.transaction(read_only=True) as tx:
        return await tx.scalar(select(func.count()).select_from(charges)) or 0


async def test_the_same_request_again_has_the_same_reply_and_no_effect(charged: Database) -> None:
    desk = Desk()
    app = app_of(desk, charged)
    first = await ask(app, {"amount": 5})
    again = await ask(app, {"amount": 5})
    assert (first.status, first.replayed) == (201, False)
    assert (again.status, again.replayed) == (201, True)
    assert again.body == first.body
    assert again.headers["content-type"] == first.headers["content-type"]
    assert await count(charged) == desk.calls == 1


async def test_it_holds_for_another_instance_of_the_service(charged: Database) -> None:
    first = await ask(app_of(Desk(), charged), {"amount": 5})
    again = await ask(app_of(Desk(), charged), {"amount": 5})
    assert again.body == first.body
    assert await count(charged) == 1


async def test_a_key_in_the_quotes_of_the_ietf_draft_is_the_same_key(charged: Database) -> None:
    app = app_of(Desk(), charged)
    await ask(app, {"amount": 5}, "key-1")
    assert (await ask(app, {"amount": 5}, '"key-1"')).replayed


async def test_the_same_key_with_another_body_is_refused(charged: Database) -> None:
    app = app_of(Desk(), charged)
    await ask(app, {"amount": 5})
    other = await ask(app, {"amount": 6})
    assert (other.status, other.json["type"]) == (422, "urn:problem:idempotency-key-reused")
    assert await count(charged) == 1


async def test_the_same_key_of_another_caller_is_another_key(charged: Database) -> None:
    app = app_of(Desk(), charged)
    await ask(app, {"amount": 5}, who="ada")
    other = await ask(app, {"amount": 6}, who="bob")
    assert (other.status, other.replayed) == (201, False)
    assert await count(charged) == 2


@pytest.mark.parametrize("key", ["", "x" * 256, "a b", "\x7f", '"'])
async def test_a_malformed_key_is_refused(key: str, charged: Database) -> None:
    refused = await ask(app_of(Desk(), charged), {"amount": 5}, key)
    expected = 201 if key == '"' else 400  # a lone quote is a character like others
    assert refused.status == expected


async def test_a_key_of_255_characters_is_taken(charged: Database) -> None:
    assert (await ask(app_of(Desk(), charged), {"amount": 5}, "x" * 255)).status == 201


async def test_without_a_key_each_request_has_its_effect(charged: Database) -> None:
    app = app_of(Desk(), charged)
    for _ in range(2):
        assert not (await ask(app, {"amount": 5}, None)).replayed
    assert await count(charged) == 2


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("microkit.web.idempotency.PATIENCE", 0.05)


@pytest.mark.usefixtures("impatient")
async def test_while_the_first_is_under_way_the_second_is_told_to_wait(charged: Database) -> None:
    desk = Desk()
    entered, leave = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        entered.set()
        await leave.wait()

    desk.before = wait
    app = app_of(desk, charged)
    first = asyncio.create_task(ask(app, {"amount": 5}))
    await entered.wait()
    second = await ask(app, {"amount": 5})
    assert (second.status, second.json["type"]) == (409, "urn:problem:request-in-flight")
    assert second.headers["retry-after"] == "1"
    leave.set()
    assert (await first).status == 201
    assert (await ask(app, {"amount": 5})).replayed


@pytest.mark.usefixtures("impatient")
async def test_while_another_instance_is_at_it_the_second_is_told_to_wait(charged: Database) -> None:
    if charged.dialect == "sqlite":
        pytest.skip("SQLite has one writer: the second instance waits for the first one's transaction")
    desk = Desk()
    entered, leave = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        entered.set()
        await leave.wait()

    desk.before = wait
    first = asyncio.create_task(ask(app_of(desk, charged), {"amount": 5}))
    await entered.wait()
    assert (await ask(app_of(Desk(), charged), {"amount": 5})).status == 409
    leave.set()
    await first
    assert await count(charged) == 1


async def test_who_comes_while_the_first_is_under_way_gets_its_reply(charged: Database) -> None:
    desk = Desk()
    entered, leave = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        entered.set()
        await leave.wait()

    desk.before = wait
    app = app_of(desk, charged)
    first = asyncio.create_task(ask(app, {"amount": 5}))
    await entered.wait()
    same = [asyncio.create_task(ask(app, {"amount": 5})) for _ in range(20)]
    other = asyncio.create_task(ask(app, {"amount": 6}))
    await asyncio.sleep(0)
    leave.set()
    assert not (await first).replayed
    replies = await asyncio.gather(*same)
    assert [(reply.status, reply.replayed, reply.body) for reply in replies] == [(201, True, (await first).body)] * 20
    assert (await other).json["type"] == "urn:problem:idempotency-key-reused"
    assert await count(charged) == desk.calls == 1


async def test_when_the_first_fails_the_next_that_waits_has_its_effect(charged: Database) -> None:
    desk = Desk()
    entered, leave = asyncio.Event(), asyncio.Event()

    async def refuse() -> None:
        desk.before = None
        entered.set()
        await leave.wait()
        raise Conflict("not today")

    desk.before = refuse
    app = app_of(desk, charged)
    first = asyncio.create_task(ask(app, {"amount": 5}))
    await entered.wait()
    others = [asyncio.create_task(ask(app, {"amount": 5})) for _ in range(20)]
    await asyncio.sleep(0)
    leave.set()
    assert (await first).json["detail"] == "not today"
    replies = await asyncio.gather(*others)
    assert {reply.status for reply in replies} == {201}
    assert sum(not reply.replayed for reply in replies) == 1
    assert (await count(charged), desk.calls) == (1, 2)


async def test_of_a_thousand_at_once_one_has_its_effect_and_all_get_its_reply(
    charged: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over three instances, by clients that come again when they are told to."""
    monkeypatch.setattr("microkit.web.idempotency.PATIENCE", 0.3)
    desk = Desk()
    desk.before = lambda: asyncio.sleep(1.0)  # longer than the others wait
    apps = [app_of(desk, charged) for _ in range(3)]
    told_to_wait = 0

    async def until_answered(app: WebApp) -> Reply:
        nonlocal told_to_wait
        # A slow machine's pool may be too much asked of: then the answer is 503, and to come again is right too.
        while (reply := await ask(app, {"amount": 5})).status in {409, 503}:
            if reply.status == 409:
                told_to_wait += 1
                assert reply.json["type"] == "urn:problem:request-in-flight"
            await asyncio.sleep(float(reply.headers["retry-after"]))
        return reply

    replies = await asyncio.gather(*(until_answered(apps[number % 3]) for number in range(1000)))
    assert told_to_wait > 0
    assert {reply.status for reply in replies} == {201}
    assert len({reply.body for reply in replies}) == 1
    assert sum(not reply.replayed for reply in replies) == 1
    assert await count(charged) == desk.calls == 1


async def test_what_was_refused_is_not_remembered(charged: Database) -> None:
    desk = Desk()

    async def refuse() -> None:
        raise Conflict("not today")

    desk.before = refuse
    app = app_of(desk, charged)
    assert (await ask(app, {"amount": 5})).status == 409
    desk.before = None
    again = await ask(app, {"amount": 5})
    assert (again.status, again.replayed) == (201, False)
    assert await count(charged) == 1


async def test_an_operation_that_is_harmless_to_repeat_remembers_nothing(charged: Database) -> None:
    app = app_of(Desk(), charged)
    for _ in range(2):
        assert not (await ask(app, {"amount": 5}, method="PUT", path="/charges/latest")).replayed
    assert await count(charged) == 2


async def test_a_body_with_a_secret_leaves_nothing_in_the_table(charged: Database) -> None:
    app = app_of(Desk(), charged)
    assert (await ask(app, {"pin": "1234"}, path="/charges/pin")).status == 201
    async with charged.transaction(read_only=True) as tx:
        assert await tx.scalar(select(func.count()).select_from(idempotency)) == 0


class LosesCommits:
    """A database whose connection is lost while COMMIT is under way, once: before or after it took effect."""

    def __init__(self, database: Database, *, committed: bool) -> None:
        self._database = database
        self._committed = committed
        self._lost = False
        self.dialect = database.dialect
        self.reads_apart = database.reads_apart
        self.expected_wait, self.typical_use = database.expected_wait, database.typical_use

    async def run(self, work: Callable[[Transaction], Awaitable[Any]], **options: Any) -> Any:
        if self._lost:
            return await self._database.run(work, **options)
        self._lost = True
        with suppress(RollBack):
            async with self._database.transaction() as tx:
                await work(tx)
                if not self._committed:
                    raise RollBack
        raise CommitUnknown


class RollBack(Exception): ...


@pytest.mark.parametrize("committed", [True, False])
async def test_a_commit_whose_outcome_is_unknown_is_looked_up_by_the_key(committed: bool, charged: Database) -> None:
    desk = Desk()
    app = app_of(desk, LosesCommits(charged, committed=committed))  # type: ignore[arg-type]
    reply = await ask(app, {"amount": 5})
    assert reply.status == 201
    assert reply.replayed is committed
    assert await count(charged) == 1


async def test_a_commit_whose_outcome_is_unknown_is_a_problem_that_says_so(charged: Database) -> None:
    app = app_of(Desk(), LosesCommits(charged, committed=True))  # type: ignore[arg-type]
    reply = await ask(app, {"amount": 5}, None)
    assert (reply.status, reply.json["type"]) == (500, "urn:problem:outcome-unknown")


async def test_a_row_that_another_process_wrote_meanwhile_is_replayed(charged: Database) -> None:
    """The window between looking for the row and writing it, which PostgreSQL's snapshot leaves open."""
    desk = Desk()
    app = app_of(desk, charged)
    first = await ask(app, {"amount": 5}, "other-key")

    async def meanwhile() -> None:
        desk.before = None
        async with charged.engine.connect() as other:
            await other.execute(update(idempotency).values(key="key-1"))
            await other.commit()

    if charged.dialect == "sqlite":
        pytest.skip("SQLite has one writer, so nothing is written meanwhile")
    desk.before = meanwhile
    raced = await ask(app, {"amount": 5}, "key-1")
    assert raced.body == first.body
    assert raced.replayed
    assert await count(charged) == 1


async def test_replies_past_their_retention_are_pruned_and_others_kept(charged: Database) -> None:
    app = app_of(Desk(), charged)
    await ask(app, {"amount": 5}, "old")
    async with charged.transaction() as tx:
        await tx.execute(update(idempotency).values(expires_at=database_now(-1.0)))
    await ask(app, {"amount": 6}, "new")
    assert await Idempotency(charged).prune() == 1
    assert (await ask(app, {"amount": 6}, "new")).replayed
    assert not (await ask(app, {"amount": 5}, "old")).replayed


async def test_the_reply_is_kept_for_a_day(charged: Database) -> None:
    await ask(app_of(Desk(), charged), {"amount": 5})
    async with charged.transaction(read_only=True) as tx:
        left = await tx.scalar(
            select(func.count()).where(
                idempotency.c.expires_at > database_now(23.9 * 3600),
                idempotency.c.expires_at < database_now(24.1 * 3600),
            )
        )
    assert left == 1


async def test_a_fault_of_the_database_is_no_reply_to_remember(charged: Database) -> None:
    desk = Desk()

    async def fail() -> None:
        raise OperationalError("INSERT", {}, Exception("disk full"))

    desk.before = fail
    app = app_of(desk, charged)
    assert (await ask(app, {"amount": 5})).status == 500
    desk.before = None
    assert (await ask(app, {"amount": 5})).status == 201
