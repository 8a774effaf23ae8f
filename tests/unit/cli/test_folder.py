"""Who holds a folder, and how other commands find what runs in it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from microkit.cli.folder import Note, noted, read_note, sole_use
from microkit.errors import ConfigurationError

NOTE = Note("shop.system:system", os.getpid(), "http://127.0.0.1:3900", {"gateway": "http://127.0.0.1:3000"})


def test_a_folder_has_one_user_at_a_time(tmp_path: Path) -> None:
    with sole_use(tmp_path), pytest.raises(ConfigurationError, match="Another `microkit up`"), sole_use(tmp_path):
        pass
    with sole_use(tmp_path):
        pass


def test_the_end_of_a_process_lets_go_of_its_folder(tmp_path: Path) -> None:
    code = f"""
import os, pathlib
from microkit.cli.folder import sole_use
with sole_use(pathlib.Path({str(tmp_path)!r})):
    os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    with sole_use(tmp_path):
        pass


def test_what_a_killed_one_had_started_is_waited_for(tmp_path: Path) -> None:
    code = f"""
import os, pathlib, subprocess, sys
from microkit.cli.folder import sole_use
folder = pathlib.Path({str(tmp_path)!r})
with sole_use(folder) as lock:  # it was killed before it had left a note
    last_words = "import time; time.sleep(1); open('ended', 'w').close()"
    subprocess.Popen([sys.executable, "-c", last_words], cwd=folder, pass_fds=(lock,))
    os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert not (tmp_path / "ended").exists()
    with sole_use(tmp_path):
        assert (tmp_path / "ended").exists()


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot be written"), sole_use(tmp_path / "file" / "folder"):
        pass


def test_the_note_is_there_while_the_system_runs(tmp_path: Path) -> None:
    with noted(tmp_path, NOTE):
        assert read_note(tmp_path) == NOTE
        assert (tmp_path / "up.json").stat().st_mode & 0o077 == 0  # it may hold the databases' passwords
    with pytest.raises(ConfigurationError, match="start one with `microkit up`"):
        read_note(tmp_path)


@pytest.mark.parametrize("left", ["", "{", "[]", '{"pid": 1}'])
def test_a_note_that_cannot_be_read_is_no_running_system(tmp_path: Path, left: str) -> None:
    (tmp_path / "up.json").write_text(left)
    with pytest.raises(ConfigurationError, match="No system runs"):
        read_note(tmp_path)


def test_a_note_left_by_a_killed_process_is_no_running_system(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with noted(tmp_path, replace(NOTE, pid=ended.pid)), pytest.raises(ConfigurationError, match="No system runs"):
        read_note(tmp_path)
