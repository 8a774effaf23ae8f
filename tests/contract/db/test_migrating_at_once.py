"""Processes that migrate at once, are killed in the middle, and wait for others; on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from microkit.db import Database, migration
from microkit.db.migration import migrate
from microkit.errors import ConfigurationError
from microkit.telemetry import Telemetry

pytestmark = pytest.mark.anyio

PROCESS = Path(__file__).with_name("migrating.py")
ROOT = Path(__file__).parents[3]
GENEROUS = 120.0
in_full = pytest.mark.skipif(os.environ.get("MICROKIT_FAULTS") != "full", reason="the full form of the fault tests")

# It has made a table when it says that it is in the middle, and goes on when it is told to.
STEP = """
import pathlib, time
import sqlalchemy as sa
from alembic import op
revision = "0001"
down_revision = None
here = pathlib.Path(__file__).parent
def upgrade():
    op.create_table("half", sa.Column("id", sa.Integer, primary_key=True))
    with (here / "began").open("a") as file:
        file.write("x")
    while not (here / "go").exists():
        {middle}
    op.execute("INSERT INTO half (id) VALUES (1)")
def downgrade():
    op.drop_table("half")
"""
SLEEPING, IN_A_STATEMENT = "time.sleep(0.02)", "op.execute('SELECT pg_sleep(3600)')"


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migration, "_PAUSE", 0.2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return written(tmp_path, SLEEPING)


def written(tmp_path: Path, middle: str) -> Path:
    folder = tmp_path / "library" / "migrations"
    (folder / "versions").mkdir(parents=True)
    (folder / "versions" / "0001_step.py").write_text(STEP.format(middle=middle), "utf-8")
    return folder


def began(folder: Path) -> int:
    file = folder / "versions" / "began"
    return len(file.read_text()) if file.exists() else 0


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(GENEROUS):
        while not condition():
            await asyncio.sleep(0.02)


@asynccontextmanager
async def process(url: str, folder: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    made = await asyncio.create_subprocess_exec(
        sys.executable, str(PROCESS), url, str(folder), stdout=asyncio.subprocess.PIPE, env=env
    )
    try:
        assert made.stdout is not None
        async with asyncio.timeout(GENEROUS):
            assert await made.stdout.readline() == b"begins\n"
        yield made
    finally:
        if made.returncode is None:
            made.kill()
        await made.wait()


async def done(each: asyncio.subprocess.Process) -> list[str]:
    assert each.stdout is not None
    async with asyncio.timeout(GENEROUS):
        found: list[str] = json.loads(await each.stdout.readline())
        assert await each.wait() == 0
    return found


async def rows(url: str) -> list[Any]:
    database = Database(url, telemetry=Telemetry("reader", exporter="none"))
    try:
        async with database.engine.connect() as connection:
            return list((await connection.execute(text("SELECT id FROM half"))).scalars())
    finally:
        await database.close()


@in_full
async def test_of_two_processes_one_does_the_work_and_the_other_finds_it_done(database_url: str, folder: Path) -> None:
    async with process(database_url, folder) as one, process(database_url, folder) as two:
        await until(lambda: began(folder) > 0)
        (folder / "versions" / "go").touch()
        first, second = await done(one), await done(two)
    assert sorted([first[-1:], second[-1:]]) == [[], ["library 0001"]]
    assert len(first + second) == len(set(first + second))
    assert began(folder) == 1
    assert await rows(database_url) == [1]


async def test_one_that_is_killed_in_the_middle_leaves_nothing_and_the_one_that_waits_goes_on(
    database_url: str, folder: Path
) -> None:
    async with process(database_url, folder) as killed:
        await until(lambda: began(folder) == 1)
        async with process(database_url, folder) as waiting:
            killed.kill()
            await killed.wait()
            (folder / "versions" / "go").touch()
            assert (await done(waiting))[-1] == "library 0001"  # which would fail, had the table been left there
    assert began(folder) == 2
    assert await rows(database_url) == [1]


@in_full
async def test_the_server_ends_the_statement_of_a_process_that_was_killed(postgres_url: str, tmp_path: Path) -> None:
    folder = written(tmp_path, IN_A_STATEMENT)
    async with process(postgres_url, folder) as killed:
        await until(lambda: began(folder) == 1)
        killed.kill()
        await killed.wait()
        (folder / "versions" / "go").touch()
        async with process(postgres_url, folder) as other:
            assert (await done(other))[-1] == "library 0001"


async def test_who_waits_too_long_for_another_is_told_so(database: Database, database_url: str, folder: Path) -> None:
    said = {
        "postgresql": r"another process has been migrating this database for 0 s \(migrating, process \d+ of the",
        "sqlite": r"another process has been writing to this database file for 0 s",
    }
    async with process(database_url, folder) as one:
        await until(lambda: began(folder) == 1)
        with pytest.raises(ConfigurationError, match=said[database.dialect]):
            await migrate(database, folder, patience=0.2)
        (folder / "versions" / "go").touch()
        assert (await done(one))[-1] == "library 0001"


async def test_who_waits_for_a_table_holds_nobody_up_and_says_so_in_the_end(postgres_url: str, tmp_path: Path) -> None:
    folder = written(tmp_path, SLEEPING)
    (folder / "versions" / "go").touch()
    database, reader = (Database(postgres_url, telemetry=Telemetry(name)) for name in ("migrating", "reader"))
    await migrate(database, folder)
    second = 'from alembic import op\nimport sqlalchemy as sa\nrevision = "0002"\ndown_revision = "0001"\n'
    second += 'def upgrade():\n    op.add_column("half", sa.Column("x", sa.Text))\n'
    (folder / "versions" / "0002_x.py").write_text(second, "utf-8")
    async with reader.transaction() as holder:
        await holder.execute(text("SELECT id FROM half"))
        with pytest.raises(ConfigurationError, match="did not get a table's lock in 0 s: its users keep it"):
            await migrate(database, folder, patience=0.0)
        going_on = asyncio.create_task(migrate(database, folder))
        for _ in range(5):
            async with reader.transaction(read_only=True) as other:
                assert await other.scalar(text("SELECT count(*) FROM half")) == 1
            await asyncio.sleep(0.05)
        assert not going_on.done()
    async with asyncio.timeout(GENEROUS):
        assert await going_on == ["library 0002"]
    await database.close()
    await reader.close()


BROKEN_OFF = """
import pathlib
from alembic import op
revision = "0001"
down_revision = None
again = pathlib.Path(__file__).with_name("again")
def upgrade():
    op.execute("CREATE TABLE half (id integer)")
    if not again.exists():
        again.touch()
        op.execute("DO $$ BEGIN RAISE {condition}; END $$")
"""


@pytest.mark.usefixtures("short_pauses")
async def test_a_script_that_the_server_ends_to_break_a_deadlock_is_tried_again(
    postgres_url: str, tmp_path: Path
) -> None:
    folder = written(tmp_path, SLEEPING)
    script = BROKEN_OFF.format(condition="deadlock_detected")
    (folder / "versions" / "0001_step.py").write_text(script, "utf-8")
    database = Database(postgres_url, telemetry=Telemetry("migrating"))
    async with asyncio.timeout(GENEROUS):
        assert (await migrate(database, folder))[-1] == "library 0001"
    await database.close()


async def test_what_a_script_left_that_was_broken_off_outside_its_transaction_is_named(
    postgres_url: str, tmp_path: Path
) -> None:
    folder = written(tmp_path, SLEEPING)
    script = BROKEN_OFF.format(condition="raise_exception").replace("    op.execute", "        op.execute", 1)
    script = script.replace("def upgrade():\n", "def upgrade():\n    with op.get_context().autocommit_block():\n", 1)
    (folder / "versions" / "0001_step.py").write_text(script, "utf-8")
    database = Database(postgres_url, telemetry=Telemetry("migrating"))
    with pytest.raises(DBAPIError):
        await migrate(database, folder)
    with pytest.raises(ConfigurationError, match=r'already: .*relation "half" already exists.* \(autocommit_block\)'):
        await migrate(database, folder)
    await database.close()
