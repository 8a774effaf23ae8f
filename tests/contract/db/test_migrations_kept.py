"""What :mod:`microkit.testing.migrations` finds, and microkit's own scripts under it."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, Text, text

from microkit.choreography import tables as choreography
from microkit.db import Database, contracts
from microkit.db.linting import lint
from microkit.db.migration import migrate
from microkit.db.scripts import MICROKIT, Scripts
from microkit.errors import ConfigurationError
from microkit.outbox import tables as outbox
from microkit.saga import tables as saga
from microkit.service import Service
from microkit.testing.migrations import check_migrations, check_scripts
from microkit.web import tables as web

pytestmark = pytest.mark.anyio

HEAD = "import sqlalchemy as sa\nfrom alembic import op\n"
FIRST = (
    HEAD
    + """
revision = "0001"
down_revision = None
def upgrade():
    op.create_table(
        "shelf", sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.Text), sa.Column("size", sa.Text),
    )
def downgrade():
    op.drop_table("shelf")
"""
)


def scripts(folder: Path, *, up: str, down: str, extra: str = "") -> Scripts:
    versions = folder / "library" / "versions"
    versions.mkdir(parents=True)
    (versions / "0001_first.py").write_text(FIRST, "utf-8")
    second = f'{HEAD}\nrevision = "0002"\ndown_revision = "0001"\n{extra}\n'
    second += f"def upgrade():\n    {up}\ndef downgrade():\n    {down}\n"
    (versions / "0002_second.py").write_text(second, "utf-8")
    return Scripts(folder / "library", "schema_version", "library")


def shelf(*columns: str) -> list[MetaData]:
    metadata = MetaData()
    Table("shelf", metadata, Column("id", Integer, primary_key=True), *(Column(name, Text) for name in columns))
    return [metadata]


@pytest.fixture
async def on_file(anyio_backend: str, sqlite_url: str, telemetry: Any) -> AsyncIterator[Database]:
    database = Database(sqlite_url, telemetry=telemetry)
    await database.start()
    yield database
    await database.close()


async def emptied(database: Database) -> None:
    async with database.engine.begin() as connection:
        there = MetaData()
        await connection.run_sync(there.reflect)
        await connection.run_sync(there.drop_all)


async def test_microkit_s_own_scripts_keep_rows_in_both_directions_and_make_the_declared_tables(
    database: Database,
) -> None:
    declared = [outbox.metadata, saga.metadata, choreography.metadata, web.metadata, contracts.metadata]
    due = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)

    def one_saga(number: int) -> dict[str, object]:
        return {"status": "queued" if number % 3 == 0 else "running", "next_at": due if number % 3 else None}

    changes = {"saga": ["status", "next_at"]}  # on the way back nothing waits for another's key any more
    await check_scripts(MICROKIT, declared, database, rows={"saga": one_saga}, changes=changes)


def test_microkit_s_own_scripts_are_survived_by_older_versions_or_say_that_they_are_not() -> None:
    assert [finding for finding in lint(MICROKIT) if finding.accepted is None] == []


async def test_a_step_back_that_loses_rows_without_a_word_is_told(on_file: Database, tmp_path: Path) -> None:
    both = "op.drop_table('shelf'); op.create_table('shelf', sa.Column('id', sa.Integer, primary_key=True), "
    made = both + "sa.Column('name', sa.Text), sa.Column('size', sa.Text))"
    lossy = scripts(tmp_path, up="op.add_column('shelf', sa.Column('room', sa.Text))", down=made)
    with pytest.raises(
        AssertionError, match=r"0002_second\.py: downgrade\(\) loses or changes \d rows of shelf"
    ) as told:
        await check_scripts(lossy, shelf("name", "size", "room"), on_file)
    assert 'forgets = "shelf: …"' in str(told.value)


async def test_a_step_that_says_what_it_forgets_may(on_file: Database, tmp_path: Path) -> None:
    both = "op.drop_table('shelf'); op.create_table('shelf', sa.Column('id', sa.Integer, primary_key=True), "
    made = both + "sa.Column('name', sa.Text), sa.Column('size', sa.Text))"
    room = "op.add_column('shelf', sa.Column('room', sa.Text))"
    lossy = scripts(tmp_path, up=room, down=made, extra='forgets = "shelf: it is written anew each night"')
    await check_scripts(lossy, shelf("name", "size", "room"), on_file)


async def test_a_step_that_changes_values_is_told_unless_it_is_meant(on_file: Database, tmp_path: Path) -> None:
    shouting = scripts(tmp_path, up="op.execute('UPDATE shelf SET name = upper(name)')", down="pass")
    with pytest.raises(
        AssertionError, match=r"upgrade\(\) loses or changes 1 rows of shelf, such as .*'name': 'name \d'"
    ):
        await check_scripts(shouting, shelf("name", "size"), on_file)
    await emptied(on_file)
    await check_scripts(shouting, shelf("name", "size"), on_file, changes={"shelf": ["name"]})


async def test_a_step_back_that_leaves_the_table_another_is_told(on_file: Database, tmp_path: Path) -> None:
    halfway = scripts(
        tmp_path,
        up="op.add_column('shelf', sa.Column('room', sa.Text)); op.create_index('by_size', 'shelf', ['size'])",
        down="op.drop_column('shelf', 'room')",
    )
    with pytest.raises(AssertionError, match=r"when it is taken back, shelf is not as before"):
        await check_scripts(halfway, shelf("name", "size", "room"), on_file)


async def test_tables_that_are_not_the_declared_ones_are_told(on_file: Database, tmp_path: Path) -> None:
    idle = scripts(tmp_path, up="pass", down="pass")
    with pytest.raises(AssertionError, match=r"do not make the tables that are declared: .*add_column"):
        await check_scripts(idle, shelf("name", "size", "room"), on_file)


async def test_rows_that_cannot_be_made_up_are_asked_for(on_file: Database, tmp_path: Path) -> None:
    checked = scripts(
        tmp_path,
        up="op.create_table('book', sa.Column('id', sa.Integer, primary_key=True), "
        "sa.Column('state', sa.Text, sa.CheckConstraint(\"state IN ('in', 'out')\"), nullable=False))",
        down="op.drop_table('book')",
    )
    with pytest.raises(AssertionError, match=r"say in rows= what one may hold, as in rows=\{'book': lambda n"):
        await check_scripts(checked, shelf("name", "size"), on_file)
    await emptied(on_file)
    await check_scripts(checked, shelf("name", "size"), on_file, rows={"book": lambda _: {"state": "in"}})


async def test_a_database_with_rows_is_left_alone(on_file: Database, tmp_path: Path) -> None:
    idle = scripts(tmp_path, up="pass", down="pass")
    await migrate(on_file, idle.folder)
    async with on_file.engine.begin() as connection:
        await connection.execute(text("INSERT INTO shelf (id, name) VALUES (1, 'dear to me')"))

    service = Service("library", tables=shelf("name", "size")[0], migrations=idle.folder)
    for check in (check_scripts(idle, shelf("name", "size"), on_file), check_migrations(service, on_file)):
        with pytest.raises(ConfigurationError, match=r"on an empty database.* has rows in schema_version, shelf"):
            await check

    async with on_file.engine.connect() as connection:
        assert await connection.scalar(text("SELECT name FROM shelf")) == "dear to me"


async def test_a_step_that_drops_a_table_with_rows_says_so(on_file: Database, tmp_path: Path) -> None:
    made = FIRST.partition("def upgrade():\n")[2].partition("def downgrade")[0].strip()
    dropping = scripts(tmp_path, up="op.drop_table('shelf')", down=made)
    with pytest.raises(AssertionError, match=r"0002_second\.py: upgrade\(\) loses or changes 2 rows of shelf"):
        await check_scripts(dropping, [], on_file)


@pytest.mark.parametrize("forgets", ["bookshelf: it is another table", "book: the shelf is not meant"])
async def test_a_step_that_forgets_another_table_does_not_mean_this_one(
    on_file: Database, tmp_path: Path, forgets: str
) -> None:
    made = FIRST.partition("def upgrade():\n")[2].partition("def downgrade")[0].strip()
    dropping = scripts(tmp_path, up="op.drop_table('shelf')", down=made, extra=f'forgets = "{forgets}"')
    with pytest.raises(AssertionError, match="rows of shelf"):
        await check_scripts(dropping, [], on_file)


async def test_a_step_that_forgets_two_tables_names_both(on_file: Database, tmp_path: Path) -> None:
    made = FIRST.partition("def upgrade():\n")[2].partition("def downgrade")[0].strip()
    dropping = scripts(tmp_path, up="op.drop_table('shelf')", down=made, extra='forgets = "book, shelf: read no more"')
    await check_scripts(dropping, [], on_file)
