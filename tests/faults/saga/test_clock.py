"""Sagas on two engines, under one of which the clock is moved by an hour. Leases are on the database's clock."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.faults.programs import run

FULL = os.environ.get("MICROKIT_FAULTS") == "full"
SAGAS = "40"


def bank(url: str, folder: Path, which: str) -> Any:
    """Runs the bank's program, which checks that money is conserved and that each effect is there once."""
    done = run("saga.bank", url, folder, "clock", SAGAS, which, seconds=400)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def test_a_clock_that_is_moved_by_an_hour_changes_nothing(database_url: str, tmp_path: Path) -> None:
    """No lease is taken from an engine that lives, no attempt is cut off before its time."""
    assert bank(database_url, tmp_path, "wall") == {"taken": 0, "cut_off": 0, "moved": True}


@pytest.mark.parametrize("where", ["postgres_url", *(["sqlite_url"] if FULL else [])])
def test_timers_that_run_out_an_hour_early_repeat_no_effect(
    where: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """As in a process whose machine was suspended: every time-out has passed when it wakes."""
    found = bank(request.getfixturevalue(where), tmp_path, "monotonic")
    assert found["moved"]
