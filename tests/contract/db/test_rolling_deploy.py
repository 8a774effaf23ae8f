"""A service is brought from version to version under requests: expand, both run, contract; and back again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
from pydantic import BaseModel
from sqlalchemy import func, insert, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from microkit import ANYONE, ConfigurationError, Database, Instance, Service, Transaction
from microkit.db.linting import lint
from microkit.db.migration import migrate
from microkit.db.scripts import of_service

pytestmark = pytest.mark.anyio

HEAD = "import sqlalchemy as sa\nfrom alembic import op\n"
FIRST = """
revision = "0001"
down_revision = None
def upgrade():
    op.create_table("note", sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
                    sa.Column("name", sa.Text))
"""
EXPAND = """
revision = "0002"
down_revision = "0001"
def upgrade():
    op.add_column("note", sa.Column("title", sa.Text))
"""
INDEX = """
revision = "0003"
down_revision = "0002"
def upgrade():
    with op.get_context().autocommit_block():
        op.create_index("by_title", "note", ["title"], postgresql_concurrently=True)
"""
CONTRACT = """
revision = "0004"
down_revision = "0003"
contract = "name is dropped: versions up to 1 write it"
def upgrade():
    op.drop_column("note", "name")
"""


class Note(BaseModel):
    text: str


def version(number: int, column: str, folder: Path, *scripts: str) -> Service:
    """A version that keeps its notes in ``column``, and knows those scripts."""

    class Base(DeclarativeBase): ...

    class NoteRow(Base):
        __tablename__ = "note"

        id: Mapped[int] = mapped_column(primary_key=True)
        text: Mapped[str | None] = mapped_column(column)

    migrations = folder / f"v{number}" / "notes" / "migrations"
    (migrations / "versions").mkdir(parents=True)
    for at, script in enumerate(scripts, 1):
        (migrations / "versions" / f"{at:04}_step.py").write_text(HEAD + script, "utf-8")
    service = Service("notes", tables=Base.metadata, migrations=migrations, version=str(number))

    @service.post("/notes", allow=ANYONE)
    async def take(body: Note, tx: Transaction) -> Note:
        await tx.execute(insert(NoteRow).values(text=body.text))
        return body

    @service.get("/notes/count", allow=ANYONE)
    async def count(tx: Transaction) -> Note:
        return Note(text=str(await tx.scalar(select(func.count(NoteRow.id)))))

    return service


@dataclass
class Load:
    """Requests without a pause to whoever serves; ``failed`` says what was not answered well."""

    serving: list[str] = field(default_factory=list)
    good: dict[str, int] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    taken: int = 0
    ended: bool = False
    busy: dict[str, int] = field(default_factory=dict)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with aiohttp.ClientSession() as session:
            callers = [asyncio.create_task(self._call(session, number)) for number in range(4)]
            try:
                yield
            finally:
                self.ended = True
                await asyncio.gather(*callers)

    async def _call(self, session: aiohttp.ClientSession, number: int) -> None:
        while not self.ended:
            number += 1
            url = self.serving[number % len(self.serving)]
            self.busy[url] = self.busy.get(url, 0) + 1
            try:
                await self._once(session, url, number)
            except (aiohttp.ClientError, OSError) as error:
                self.failed.append(f"{url}: {error!r}")
            finally:
                self.busy[url] -= 1
            await asyncio.sleep(0.002)

    async def _once(self, session: aiohttp.ClientSession, url: str, number: int) -> None:
        writes = number % 2 == 0
        asked = session.post(f"{url}/notes", json={"text": "x"}) if writes else session.get(f"{url}/notes/count")
        async with asked as answer:
            if answer.status >= 300:
                self.failed.append(f"{answer.status} {await answer.text()}")
                return
        self.taken += writes
        self.good[url] = self.good.get(url, 0) + 1

    async def served(self, *urls: str) -> None:
        """Until each of them has answered some more."""
        before = dict(self.good)
        async with asyncio.timeout(120):
            while any(self.good.get(url, 0) < before.get(url, 0) + 10 for url in urls):
                await asyncio.sleep(0.01)

    async def leave(self, url: str) -> None:
        """As a load balancer does before an instance stops."""
        self.serving.remove(url)
        async with asyncio.timeout(120):
            while self.busy.get(url):
                await asyncio.sleep(0.01)


async def test_nobody_notices_an_expand_a_rolling_restart_and_a_contract(
    database: Database, database_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = version(1, "name", tmp_path, FIRST)
    two = version(2, "title", tmp_path, FIRST, EXPAND, INDEX)
    three = version(3, "title", tmp_path, FIRST, EXPAND, INDEX, CONTRACT)
    settings: dict[str, object] = {"database_url": database_url, "port": 0, "database_pool_timeout": 60.0}
    load = Load()

    await migrate(database, one.declared.migrations)
    async with AsyncExitStack() as instances:

        async def started(service: Service) -> Instance:
            running = await instances.enter_async_context(service.instance(settings))
            load.serving.append(running.url)
            return running

        old = await started(one)
        async with load.running():
            await load.served(old.url)
            assert await migrate(database, two.declared.migrations) == ["notes 0002", "notes 0003"]
            new = await started(two)
            await load.served(old.url, new.url)
            again = await started(one)  # rolled back: nothing was declared that it does not survive
            assert "the database of notes is at notes 0003, which this version does not know: a newer" in caplog.text
            await load.served(again.url)
            for leaving in (old, again):
                await load.leave(leaving.url)
                await leaving.stop()
            assert await migrate(database, three.declared.migrations) == ["notes 0004"]
            await load.served(new.url)
            with pytest.raises(ConfigurationError, match=r"does not survive notes 0004 \(name is dropped: versions"):
                await started(one)
            new_again = await started(two)  # it knows what came before, and stopped using it then
            last = await started(three)
            await load.served(new_again.url, last.url)
            for leaving in (new, new_again):
                await load.leave(leaving.url)
                await leaving.stop()
            await load.served(last.url)
    assert load.failed == []
    async with database.transaction(read_only=True) as tx:
        assert await tx.scalar(text("SELECT count(*) FROM note")) == load.taken


def test_the_steps_of_the_deploy_are_what_lint_says_of_them(tmp_path: Path) -> None:
    scripts = version(3, "title", tmp_path, FIRST, EXPAND, INDEX, CONTRACT).declared.migrations
    assert scripts is not None

    assert [(finding.revision, finding.accepted is not None) for finding in lint(of_service(scripts))] == [
        ("0004", True)
    ]
