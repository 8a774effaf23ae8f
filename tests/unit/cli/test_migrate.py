"""``microkit migrate``, as a person and as a pipeline run it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.unit.cli.command import Command, Ended

PURSE = """
from pathlib import Path
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from microkit import Service, System

class Base(DeclarativeBase): ...

class CoinRow(Base):
    __tablename__ = "coin"
    id: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[int]

coins = Service("coins", tables=Base.metadata, migrations=Path(__file__).parent / "coins" / "migrations")
system = System("purse", services=[coins])
"""
CONTRACT = """
from alembic import op
revision = "0002"
down_revision = "0001"
{says}
def upgrade():
    op.drop_column("coin", "value")
def downgrade():
    pass
"""


@pytest.fixture
def purse(command: Command) -> Iterator[Command]:
    (command.folder / "purse.py").write_text(PURSE)
    yield command
    sys.modules.pop("purse", None)


def here(command: Command, *arguments: str) -> Ended:
    sys.modules.pop("purse", None)
    return command.here(*arguments, "--system", "purse:system")


def told(command: Command, *arguments: str) -> tuple[int, Any]:
    done = here(command, "migrate", *arguments, "--json")
    return done.code, done.document


def test_a_script_is_drafted_checked_run_shown_and_taken_back(purse: Command) -> None:
    code, drafted = told(purse, "new", "coins", "first tables")
    assert (code, drafted["file"]) == (
        0,
        str(purse.folder / "coins" / "migrations" / "versions" / "0001_first_tables.py"),
    )
    assert told(purse, "lint") == (0, {"ok": True, "services": ["coins"], "findings": []})
    code, sql = told(purse, "sql", "coins", "--new-database")
    assert code == 0
    assert "CREATE TABLE coin" in sql["sql"]
    code, missing = told(purse, "coins", "--check")
    assert (code, missing["pending"][-1]) == (1, "coins 0001")
    code, done = told(purse, "coins")
    assert (code, done["applied"][-1], done["pending"]) == (0, "coins 0001", [])
    code, shown = told(purse, "status", "coins")
    assert (shown["scripts"][-1]["state"], shown["newer"], shown["said"]) == ("current", [], None)
    code, asked = told(purse, "down", "coins")
    assert (code, asked["done"], asked["scripts"][0]["state"]) == (1, False, "to be taken back")
    code, back = told(purse, "down", "coins", "--yes")
    assert (code, back["done"], back["scripts"][0]["state"]) == (0, True, "taken back")
    assert told(purse, "coins", "--check")[0] == 1


def test_what_an_older_version_would_not_survive_ends_a_pipeline_unless_the_script_says_so(purse: Command) -> None:
    told(purse, "new", "coins", "first tables")
    script = purse.folder / "coins" / "migrations" / "versions" / "0002_less.py"
    script.write_text(CONTRACT.format(says=""))

    refused = here(purse, "migrate", "lint")
    assert refused.code == 1
    assert "refused  coins 0002 (0002_less.py): breaks, squawk:ban-drop-column" in refused.out
    assert "Instead: stop using it now; drop it in a release after the last version that uses it" in refused.out
    assert "1 refused, 0 accepted in the migrations of coins." in refused.out
    script.write_text(CONTRACT.format(says='contract = "nobody has read it since 1.2"'))
    code, accepted = told(purse, "lint", "coins")
    assert (code, accepted["ok"]) == (0, True)
    assert [finding["accepted"] for finding in accepted["findings"]] == ["nobody has read it since 1.2"]


def test_a_version_that_is_too_old_for_its_database_is_told_so(purse: Command) -> None:
    told(purse, "new", "coins", "first tables")
    script = purse.folder / "coins" / "migrations" / "versions" / "0002_less.py"
    script.write_text(CONTRACT.format(says='contract = "nobody reads the value"\nneeds = "0002"'))
    assert told(purse, "coins")[0] == 0
    script.unlink()

    _, shown = told(purse, "status", "coins")
    assert shown["newer"] == ["coins 0002"]
    assert "one as old as this does not survive coins 0002 (nobody reads the value)" in shown["said"]
    found = here(purse, "doctor", "coins", "--json").document["findings"]
    assert [each["verdict"] for each in found if each["what"] == "migrations"] == ["error"]
