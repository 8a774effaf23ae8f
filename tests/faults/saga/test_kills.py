"""Sagas whose processes are killed, with a real SIGKILL: at every step, and at random."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.faults.programs import run

FULL = os.environ.get("MICROKIT_FAULTS") == "full"


def bank(url: str, folder: Path, *command: str) -> Any:
    """Runs the bank's program, which checks that money is conserved and that each effect is there once."""
    done = run("saga.bank", url, folder, *command, seconds=1200)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def test_a_saga_ends_rightly_wherever_its_process_is_killed(database_url: str, tmp_path: Path) -> None:
    points = bank(database_url, tmp_path, "explore")["points"]

    forward = [
        "claim: before commit",
        "claim: after commit",
        "debit begins",
        "debit written",
        "action debit done: before commit",
        "action debit done: after commit",
        "reserve begins",
        "reserve booked",
        "action reserve done: before commit",
        "action reserve done: after commit",
        "book begins",
        "book booked",
        "action book done: before commit",
        "action book done: after commit",
        "action note done: before commit",
        "action note done: after commit",
    ]
    back = [
        "action book refused: before commit",
        "action book refused: after commit",
        "release begins",
        "release booked",
        "undo reserve done: before commit",
        "undo reserve done: after commit",
        "credit_back begins",
        "credit_back written",
        "undo debit done: before commit",
        "undo debit done: after commit",
    ]
    assert set(points) >= {*forward, *back}


def test_sagas_end_rightly_while_engines_are_killed_and_stopped_at_random(database_url: str, tmp_path: Path) -> None:
    sagas, blows = (3000, 300) if FULL else (150, 25)
    blow = bank(database_url, tmp_path, "storm", str(sagas), str(blows))

    assert blow["kills"] + blow["stops"] > blows // 5


@pytest.mark.parametrize("damage", ["lose", "repeat"])
def test_an_effect_too_few_or_too_many_would_be_seen(sqlite_url: str, tmp_path: Path, damage: str) -> None:
    """The checks above would be worth nothing if they passed whatever happens."""
    with pytest.raises(AssertionError, match="in verify"):
        bank(sqlite_url, tmp_path, damage)
