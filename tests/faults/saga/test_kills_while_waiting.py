"""Processes killed in the middle of a group, and between a reply and the progress that it makes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).with_name("waiter.py")


def test_a_kill_in_mid_group_and_one_between_reply_and_progress_change_nothing(
    database_url: str, tmp_path: Path
) -> None:
    ends = []
    for _ in range(4):
        done = subprocess.run(
            [sys.executable, PROGRAM, database_url, tmp_path], capture_output=True, text=True, check=False, timeout=120
        )
        ends.append(done.returncode)

    assert ends == [-signal.SIGKILL] * 3 + [0], done.stderr[-3000:]
    told = json.loads(done.stdout)
    assert told["status"] == "completed"
    assert told["state"] == {"payment": "p", "flight": 1, "hotel": 1, "paid": 1}
    # The branch that had ended did not run again; the reply was there for the next process.
    assert told["passed"] == ["fly", "sleep", "sleep", "paid", "paid"]
