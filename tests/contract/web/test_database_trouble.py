"""What a caller is told when the service's database cannot do what it should."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import orjson
import pytest
from sqlalchemy import Column, Integer, LargeBinary, MetaData, Table, func, insert, select, text

from microkit.contract import ANYONE
from microkit.db import Database, Transaction
from microkit.db.migration import create_tables
from microkit.telemetry import Telemetry
from microkit.web import InlineRoute, Limits, Surface, WebApp

pytestmark = pytest.mark.anyio

own = MetaData()
blobs = Table("blob", own, Column("id", Integer, primary_key=True), Column("data", LargeBinary, nullable=False))

Handler = Callable[..., Awaitable[Any]]
Sent = tuple[int, dict[str, str], Any]


async def ask(app: WebApp, method: str = "POST") -> Sent:
    sent: list[MutableMapping[str, Any]] = []
    scope = {"type": "http", "method": method, "path": "/x", "raw_path": b"/x", "query_string": b"", "headers": []}

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.request", "body": b""}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    await app(scope, receive, send)
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], headers, orjson.loads(sent[1]["body"] or b"null")


def app_of(database: Database, handler: Handler, method: str = "POST", **limits: Any) -> WebApp:
    surface = Surface("x", routes=[InlineRoute(method, "/x", handler, ANYONE)])
    return WebApp(surface, telemetry=Telemetry("x"), database=database, limits=Limits(**limits), access_log=False)


async def test_a_full_sqlite_file_is_507_until_there_is_room_again(sqlite_url: str, telemetry: Telemetry) -> None:
    database = Database(sqlite_url, telemetry=telemetry)
    await create_tables(database, own)

    async def may_have(pages: int) -> None:
        async with database.transaction() as tx:
            await tx.execute(text(f"PRAGMA max_page_count = {pages}"))

    async def store(tx: Transaction) -> int:
        await tx.execute(insert(blobs).values(data=b"small"))
        await tx.execute(insert(blobs).values(data=b"x" * 1_000_000))
        return await tx.scalar(select(func.count()).select_from(blobs)) or 0

    app = app_of(database, store)
    await may_have(20)
    for _ in range(2):
        status, _, problem = await ask(app)
        assert (status, problem["type"]) == (507, "urn:problem:storage-full")
        assert "blob" not in orjson.dumps(problem).decode()
    async with database.transaction(read_only=True) as tx:
        assert await tx.scalar(select(func.count()).select_from(blobs)) == 0
    await may_have(1_000_000)
    assert (await ask(app))[::2] == (200, 2)
    await database.close()


@pytest.mark.parametrize(
    ("sqlstate", "status", "type_"),
    [
        ("53100", 507, "urn:problem:storage-full"),
        ("53200", 503, "urn:problem:database-unavailable"),
        ("53300", 503, "urn:problem:database-unavailable"),
        ("53400", 503, "urn:problem:database-unavailable"),
        ("57P01", 503, "urn:problem:database-unavailable"),
        ("57P03", 503, "urn:problem:database-unavailable"),
        ("57P04", 503, "urn:problem:database-unavailable"),
        ("58030", 503, "urn:problem:database-unavailable"),
    ],
)
async def test_what_postgresql_cannot_do_at_present_is_told_apart(
    postgres_url: str, telemetry: Telemetry, sqlstate: str, status: int, type_: str
) -> None:
    postgres = Database(postgres_url, telemetry=telemetry)

    async def fail(tx: Transaction) -> None:
        await tx.execute(text(f"DO $$ BEGIN RAISE EXCEPTION 'secret' USING ERRCODE = '{sqlstate}'; END $$"))

    found, headers, problem = await ask(app_of(postgres, fail))
    assert (found, problem["type"]) == (status, type_)
    assert headers.get("retry-after") == ("1" if status == 503 else None)
    assert "secret" not in orjson.dumps(problem).decode()
    await postgres.close()


async def test_more_than_the_pool_takes_is_503_and_it_serves_what_it_can(
    database_url: str, telemetry: Telemetry, caplog: pytest.LogCaptureFixture
) -> None:
    """Ten times what two connections can do, for as long as a request may take, twenty times over."""
    caplog.set_level(logging.CRITICAL)
    database = Database(database_url, telemetry=telemetry, pool_size=2, max_overflow=0, pool_timeout=60.0)

    async def slow(tx: Transaction) -> int:
        await tx.execute(text("SELECT 1"))
        await asyncio.sleep(0.1)
        return 1

    app = app_of(database, slow, "GET", timeout=0.5)
    asked = []
    for _ in range(200):
        asked.append(asyncio.create_task(ask(app, "GET")))
        await asyncio.sleep(0.01)
    answers = await asyncio.gather(*asked)
    refused = [headers for status, headers, _ in answers if status == 503]
    assert {status for status, _, _ in answers} <= {200, 503, 504}
    assert all(headers["retry-after"] in {"1", "2", "3"} for headers in refused)
    assert len(refused) > 100, "most are told at once that it is too much"
    assert sum(status == 200 for status, _, _ in answers) >= 10, "those that are let in are served"
    assert database._readers._free._value == 2
    assert (await ask(app, "GET"))[0] == 200
    await database.close()
