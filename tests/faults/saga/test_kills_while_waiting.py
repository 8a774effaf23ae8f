"""Processes killed in the middle of a group, and between a reply and the progress that it makes."""

from __future__ import annotations

import json
import signal
from pathlib import Path

from tests.faults.programs import run


def test_a_kill_in_mid_group_and_one_between_reply_and_progress_change_nothing(
    database_url: str, tmp_path: Path
) -> None:
    ends = []
    for _ in range(4):
        done = run("saga.waiter", database_url, tmp_path, seconds=120)
        ends.append(done.returncode)

    assert ends == [-signal.SIGKILL] * 3 + [0], done.stderr[-3000:]
    told = json.loads(done.stdout)
    assert told["status"] == "completed"
    assert told["state"] == {"payment": "p", "flight": 1, "hotel": 1, "paid": 1}
    # The branch that had ended did not run again; the reply was there for the next process.
    assert told["passed"] == ["fly", "sleep", "sleep", "paid", "paid"]
