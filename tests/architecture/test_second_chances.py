"""CI tries a failed test once more. That many of them need it is a failure all the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import SECOND_CHANCES

REPOSITORY = Path(__file__).parents[2]
FAILS_ONCE = """
import pytest

tried = set()

@pytest.mark.parametrize("number", range({count}))
def test_it(number):
    if number not in tried:
        tried.add(number)
        raise AssertionError("the first time")
"""


@pytest.mark.parametrize(("count", "code"), [(SECOND_CHANCES, 0), (SECOND_CHANCES + 1, 1)])
def test_a_few_tests_may_fail_once_and_are_shown(tmp_path: Path, count: int, code: int) -> None:
    (tmp_path / "test_it.py").write_text(FAILS_ONCE.format(count=count))
    command = [sys.executable, "-m", "pytest", "-n", "2", "-p", "tests.conftest", "--reruns", "1"]
    run = subprocess.run(
        [*command, "--rerun-show-tracebacks", "--rootdir", str(tmp_path), str(tmp_path)],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == code, run.stdout + run.stderr
    assert f"{count} passed, {count} rerun" in run.stdout
    assert run.stdout.count("AssertionError: the first time") >= count
    assert ("more tests than chance explains" in run.stdout) is bool(code)
