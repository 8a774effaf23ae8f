"""The folder of the workers' sockets: one for each instance, and none that outlives its owner for long."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from microkit.workers.folder import socket_folder

HOLD = """
import sys
from microkit.workers.folder import socket_folder
with socket_folder() as folder:
    print(folder, flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_one_left_goes_with_the_next_start_and_what_is_held_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    somebody_s = tmp_path / "microkit-1-notes"
    somebody_s.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", HOLD],
        env={"TMPDIR": str(tmp_path), "PYTHONPATH": ":".join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None
        held = Path(other.stdout.readline().decode().strip())
        try:
            with socket_folder() as own:
                assert own.stat().st_mode & 0o777 == 0o700
                assert {own, held, somebody_s} == set(tmp_path.iterdir())
        finally:
            other.kill()
    assert held.exists()
    with socket_folder() as own:
        assert {own, somebody_s} == set(tmp_path.iterdir())
    assert list(tmp_path.iterdir()) == [somebody_s]
