"""SIGKILL at every crash point of relay and consumer in turn: nothing is lost, and effects happen once."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

from microkit.db import Database
from microkit.telemetry import Telemetry

pytestmark = pytest.mark.anyio

OFFICE = Path(__file__).with_name("post_office.py")
EVENTS, KEYS, BATCH = 600, 7, 10


async def run(url: str, folder: Path, mode: str, rounds: int) -> list[str]:
    """Runs the office to its end; the points at which it was killed meanwhile."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(OFFICE),
        url,
        str(folder),
        mode,
        str(rounds),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
    return (folder / "killed").read_text().splitlines()


def in_order(numbers: list[int]) -> None:
    first_comings = list(dict.fromkeys(numbers))
    assert sorted(first_comings) == list(range(EVENTS))
    for key in range(KEYS):
        lane = [number for number in first_comings if number % KEYS == key]
        assert lane == sorted(lane)


async def test_a_relay_killed_at_every_point_loses_nothing_and_repeats_at_most_one_batch_a_kill(
    database_url: str, tmp_path: Path
) -> None:
    killed = await run(database_url, tmp_path, "broker", 4)
    assert len(killed) == 16
    found = [int(line) for line in (tmp_path / "broker").read_text().splitlines()]
    in_order(found)
    assert len(found) - EVENTS <= BATCH * len(killed)


async def test_a_process_killed_at_every_point_has_each_effect_once_and_in_order(
    database_url: str, tmp_path: Path
) -> None:
    """With a bus that dies with it: what was under way is in the outbox alone."""
    killed = await run(database_url, tmp_path, "memory", 3)
    assert len(killed) == 15
    database = Database(database_url, telemetry=Telemetry("reader"))
    async with database.transaction(read_only=True) as tx:
        found = list((await tx.execute(sa.text("SELECT number FROM effect ORDER BY place"))).scalars())
    await database.close()
    assert len(found) == EVENTS
    in_order(found)


async def test_a_relay_stopped_for_longer_than_its_lease_loses_nothing_and_repeats_at_most_a_batch_each_time(
    postgres_url: str, tmp_path: Path
) -> None:
    """By a real SIGSTOP, while another relay takes its shards over; then it goes on."""
    stopped = await run(postgres_url, tmp_path, "slowly", 3)
    assert stopped
    found = [int(line) for line in (tmp_path / "broker").read_text().splitlines()]
    in_order(found)
    assert len(found) - EVENTS <= BATCH * len(stopped)
