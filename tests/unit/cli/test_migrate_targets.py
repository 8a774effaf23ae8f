"""Where ``migrate up`` and ``migrate down`` may go: never back unasked, never to a place that is not there."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.unit.cli.command import Command, Ended

SHELVES = """
from pathlib import Path
from sqlalchemy import MetaData
from microkit import Service, System

shelves = Service("shelves", tables=MetaData(), migrations=Path(__file__).parent / "shelves" / "migrations")
system = System("house", services=[shelves])
"""
STEP = """
import sqlalchemy as sa
from alembic import op
revision = "{number:04}"
down_revision = {before}
{says}
def upgrade():
    op.create_table("shelf_{number}", sa.Column("id", sa.Integer, primary_key=True))
def downgrade():
    op.drop_table("shelf_{number}")
"""


class House:
    def __init__(self, command: Command) -> None:
        self.command = command
        self.versions = command.folder / "shelves" / "migrations" / "versions"
        self.versions.mkdir(parents=True)
        (command.folder / "house.py").write_text(SHELVES)
        for number in range(1, 5):
            self.write(number)

    def write(self, number: int, says: str = "") -> None:
        before = f'"{number - 1:04}"' if number > 1 else None
        text = STEP.format(number=number, before=before, says=says)
        (self.versions / f"{number:04}_step.py").write_text(text)

    def __call__(self, *arguments: str, **env: str) -> Ended:
        sys.modules.pop("house", None)
        return self.command.here("migrate", *arguments, "--system", "house:system", "--json", env=env)

    @property
    def at(self) -> list[str]:
        scripts = self("status", "shelves").document["scripts"]
        return [each["revision"] for each in scripts if each["scripts"] == "shelves" and each["state"] != "pending"]


@pytest.fixture
def house(command: Command) -> Iterator[House]:
    yield House(command)
    sys.modules.pop("house", None)


@pytest.mark.parametrize("target", ["0002", "base", "-1"])
def test_up_does_not_go_back(house: House, target: str) -> None:
    assert house("up", "shelves").code == 0

    refused = house("up", "shelves", "--target", target)

    assert refused.code == 1
    assert (
        f"`microkit migrate down shelves --to {target}` says what going back there loses" in refused.document["error"]
    )
    assert house.at == ["0001", "0002", "0003", "0004"]


def test_up_goes_as_far_as_it_is_told(house: House) -> None:
    for target, there in (("0001", 1), ("0003", 3), ("0003", 3), ("+1", 4)):
        assert house("up", "shelves", "--target", target).code == 0
        assert len(house.at) == there


@pytest.mark.parametrize("to", ["head", "+1", "0009", "-9"])
def test_down_goes_only_to_what_is_there(house: House, to: str) -> None:
    assert house("up", "shelves", "--target", "0003").code == 0

    for asked in ([], ["--yes"]):
        refused = house("down", "shelves", "--to", to, *asked)
        assert refused.code == 1
        assert f"shelves has no revision '{to}' to go back to; it has: 0001, 0002" in refused.document["error"]
    assert house.at == ["0001", "0002", "0003"]


def test_down_goes_back_and_no_further(house: House) -> None:
    assert house("down", "shelves", "--yes").document["scripts"] == []
    house("up", "shelves", "--target", "0003")
    assert house("down", "shelves", "--to", "0004", "--yes").document["scripts"] == []
    for to, there in (("-1", ["0001", "0002"]), ("0001", ["0001"]), ("base", [])):
        assert house("down", "shelves", "--to", to, "--yes").code == 0
        assert house.at == there


def test_the_job_of_a_version_that_was_rolled_back_ends_well(house: House) -> None:
    assert house("up", "shelves").code == 0
    (house.versions / "0004_step.py").unlink()

    for asked in ([], ["--check"]):
        done = house("up", "shelves", *asked)
        assert (done.code, done.document["applied"]) == (0, [])
        assert (
            "shelves 0004, which this version does not know: a newer version has migrated it" in done.document["said"]
        )


def test_the_job_of_a_version_that_does_not_survive_ends_badly(house: House) -> None:
    house.write(4, says='contract = "shelf 3 is read no more"\nneeds = "0004"')
    assert house("up", "shelves").code == 0
    (house.versions / "0004_step.py").unlink()

    done = house("up", "shelves")
    assert done.code == 1
    assert "does not survive shelves 0004 (shelf 3 is read no more)" in done.document["error"]


def test_an_error_shows_no_password_of_a_url(house: House) -> None:
    url = "postgresql+asyncpg://127.0.0.1:1/house?user=u&password=s3cret-s3cret"
    failed = house("status", "shelves", SHELVES_DATABASE_URL=url)
    assert failed.code == 1
    assert "127.0.0.1:1/house" in failed.err
    assert "s3cret" not in failed.out + failed.err
