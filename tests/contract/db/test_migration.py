"""Migrations, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import BigInteger, Column, ForeignKey, Integer, MetaData, Table, Text, inspect, text

from microkit.choreography import tables as choreography
from microkit.db import Database, contracts, migration
from microkit.db.migration import create_tables, drift, migrate, pending, revise
from microkit.db.scripts import FRAMEWORK, Scripts
from microkit.errors import ConfigurationError
from microkit.outbox import tables as outbox
from microkit.saga import tables as saga
from microkit.telemetry import Telemetry
from microkit.web import tables as web

pytestmark = pytest.mark.anyio

FIRST = """
import sqlalchemy as sa
from alembic import op
revision = "0001"
down_revision = None
def upgrade():
    op.create_table("shelf", sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.Text))
    op.create_table(
        "book",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("shelf_id", sa.Integer, sa.ForeignKey("shelf.id", ondelete="CASCADE")),
    )
    op.execute("INSERT INTO shelf (id, name) VALUES (1, 'top')")
    op.execute("INSERT INTO book (id, shelf_id) VALUES (7, 1)")
def downgrade():
    op.drop_table("book")
    op.drop_table("shelf")
"""

SECOND = """
import sqlalchemy as sa
from alembic import op
revision = "0002"
down_revision = "0001"
def upgrade():
    with op.batch_alter_table("shelf") as shelf:
        shelf.alter_column("name", existing_type=sa.Text, nullable=False)
        shelf.add_column(sa.Column("room", sa.Text))
def downgrade():
    with op.batch_alter_table("shelf") as shelf:
        shelf.drop_column("room")
        shelf.alter_column("name", existing_type=sa.Text, nullable=True)
"""

THIRD_FAILS = """
from alembic import op
revision = "0003"
down_revision = "0002"
def upgrade():
    op.execute("CREATE TABLE half_done (id INTEGER)")
    op.execute("SELECT * FROM there_is_no_such_table")
def downgrade():
    pass
"""

OURS = [f"microkit {revision}" for revision in Scripts(FRAMEWORK, "microkit_version", "microkit").missing(set())]
DECLARED = [outbox.metadata, saga.metadata, choreography.metadata, web.metadata, contracts.metadata]


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    folder = tmp_path / "library % ü;:" / "migrations"
    write(folder, "0001_first", FIRST)
    write(folder, "0002_second", SECOND)
    return folder


def write(folder: Path, name: str, content: str) -> None:
    (folder / "versions").mkdir(parents=True, exist_ok=True)
    (folder / "versions" / f"{name}.py").write_text(content, "utf-8")


async def tables(database: Database) -> set[str]:
    async with database.engine.connect() as connection:
        return set(await connection.run_sync(lambda sync: inspect(sync).get_table_names()))


async def rows(database: Database, query: str) -> list[tuple[Any, ...]]:
    async with database.engine.connect() as connection:
        return [tuple(row) for row in await connection.execute(text(query))]


async def test_a_new_database_is_brought_to_the_head_and_then_misses_nothing(database: Database, scripts: Path) -> None:
    everything = [*OURS, "library % ü;: 0001", "library % ü;: 0002"]
    assert await pending(database, scripts) == everything
    assert await migrate(database, scripts) == everything
    assert await pending(database, scripts) == []
    assert {"outbox", "saga", "idempotency", "shelf", "book"} <= await tables(database)


async def test_migrating_again_does_nothing(database: Database, scripts: Path) -> None:
    await migrate(database, scripts)
    assert await migrate(database, scripts) == []
    assert await migrate(database, scripts) == []


async def test_tables_are_those_that_their_owners_declare(database: Database) -> None:
    await migrate(database, None)
    assert await drift(database, DECLARED) == []


async def test_drift_tells_a_missing_column_a_missing_table_and_another_type(database: Database) -> None:
    before, after = MetaData(), MetaData()
    Table("thing", before, Column("id", Integer, primary_key=True), Column("size", Integer))
    Table("thing", after, Column("id", Integer, primary_key=True), Column("size", Text), Column("new", Integer))
    Table("other", after, Column("id", Integer, primary_key=True))
    await create_tables(database, before)
    found = " ".join(await drift(database, after))
    assert "add_table" in found
    assert "add_column" in found
    assert "modify_type" in found
    assert await drift(database, before) == []


async def test_all_the_way_down_and_up_again(database: Database, scripts: Path) -> None:
    await migrate(database, scripts)
    assert await migrate(database, scripts, target="-1") == ["library % ü;: 0002"]
    assert await pending(database, scripts) == ["library % ü;: 0002"]
    await migrate(database, scripts, target="0002")
    await migrate(database, scripts, target="0001")
    assert await pending(database, scripts) == ["library % ü;: 0002"]
    await migrate(database, scripts, target="base")
    assert not {"shelf", "book"} & await tables(database)
    assert len(await migrate(database, scripts)) == 2
    assert await rows(database, "SELECT id, shelf_id FROM book") == [(7, 1)]


async def test_changing_a_parent_table_leaves_its_children_alone(database: Database, scripts: Path) -> None:
    # On SQLite the parent is copied and dropped, and with foreign keys on its children would go with it.
    await migrate(database, scripts, target="0001")
    await migrate(database, scripts)
    assert await rows(database, "SELECT id, shelf_id FROM book") == [(7, 1)]


async def test_a_script_that_fails_leaves_nothing_of_itself(database: Database, scripts: Path) -> None:
    await migrate(database, scripts)
    write(scripts, "0003_fails", THIRD_FAILS)
    for _ in range(2):
        with pytest.raises(Exception, match="there_is_no_such_table"):
            await migrate(database, scripts)
    assert "half_done" not in await tables(database)
    assert await pending(database, scripts) == ["library % ü;: 0003"]
    (scripts / "versions" / "0003_fails.py").unlink()
    assert await migrate(database, scripts) == []


async def test_many_at_once_do_it_once(database: Database, database_url: str, scripts: Path) -> None:
    others = [Database(database_url, telemetry=Telemetry("other")) for _ in range(4)]
    done = await asyncio.gather(*(migrate(each, scripts) for each in others))
    assert sorted(revision for revisions in done for revision in revisions) == sorted(
        [*OURS, "library % ü;: 0001", "library % ü;: 0002"]
    )
    assert await rows(database, "SELECT count(*) FROM shelf") == [(1,)]
    for each in others:
        await each.close()


async def test_two_services_migrate_at_a_time_without_mixing_their_scripts(
    sqlite_url: str, postgres_url: str, scripts: Path, tmp_path: Path
) -> None:
    write(tmp_path / "other" / "migrations", "0001", FIRST.replace("shelf", "rack").replace("book", "tool"))
    one = Database(sqlite_url, telemetry=Telemetry("one"))
    two = Database(postgres_url, telemetry=Telemetry("two"))
    await asyncio.gather(migrate(one, scripts), migrate(two, tmp_path / "other" / "migrations"))
    assert {"shelf", "book"} <= await tables(one)
    assert {"rack", "tool"} <= await tables(two)
    assert not {"rack", "tool"} & await tables(one)
    await one.close()
    await two.close()


async def test_a_database_that_a_newer_program_migrated_is_used_and_not_touched(
    database: Database, scripts: Path
) -> None:
    await migrate(database, scripts)
    (scripts / "versions" / "0002_second.py").unlink()
    assert await pending(database, scripts) == []
    with pytest.raises(ConfigurationError, match=r"is at 0002, which library .* does not know"):
        await migrate(database, scripts)


async def test_a_service_that_starts_while_a_newer_version_migrates_goes_on(
    database: Database, scripts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    newer = Path(shutil.copytree(scripts, tmp_path / "newer" / "migrations"))
    write(newer, "0003_third", 'revision = "0003"\ndown_revision = "0002"\ndef upgrade():\n    pass\n')

    async def overtaken(database: Database, folder: Path) -> list[str]:
        await migrate(database, newer)
        return await migrate(database, folder)

    monkeypatch.setattr(migration, "migrate", overtaken)
    await migration.prepare(database, scripts, service="library", run=True, logger=logging.getLogger("library"))

    assert "the database of library is at library % ü;: 0003, which this version does not know: a newer" in caplog.text


async def test_an_unknown_target_and_a_folder_without_scripts_are_refused(
    database: Database, scripts: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match="nonsense"):
        await migrate(database, scripts, target="nonsense")
    with pytest.raises(ConfigurationError, match="no folder"):
        await pending(database, tmp_path / "nothing")
    write(scripts, "0009_no_revision", "x = 1")
    with pytest.raises(ConfigurationError, match=r'0009_no_revision\.py is no migration: .*revision = "0001"'):
        await pending(database, scripts)


async def test_a_script_can_be_drafted_from_the_tables(database: Database, tmp_path: Path) -> None:
    metadata = MetaData()
    owner = Table("owner", metadata, Column("id", BigInteger, primary_key=True))
    folder = tmp_path / "pets" / "migrations"
    first = await revise(database, folder, metadata, "owners")
    assert first.name == "0001_owners.py"
    await migrate(database, folder)
    Table("pet", metadata, Column("id", Integer, primary_key=True), Column("owner_id", ForeignKey(owner.c.id)))
    second = await revise(database, folder, metadata, "pets")
    assert second.name == "0002_pets.py"
    with pytest.raises(ConfigurationError, match="not up to date"):
        await revise(database, folder, metadata, "too early")
    await migrate(database, folder)
    assert await drift(database, metadata) == []
