"""A contract is seen by mypy, pyright and ty as what it means."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent

CHECKERS = {
    "mypy": [BIN / "mypy", "--config-file", HERE.parent.parent / "pyproject.toml", "--no-error-summary"],
    "pyright": [BIN / "pyright", "--outputjson", "--pythonpath", sys.executable],
    "ty": [BIN / "ty", "check", "--output-format", "concise", "--ignore", "empty-body", "--python", sys.prefix],
}


def refused_lines(checker: str, file: str) -> set[int]:
    ended = subprocess.run(
        [str(part) for part in [*CHECKERS[checker], file]], cwd=HERE, capture_output=True, text=True, check=False
    )
    if checker == "pyright":
        found = json.loads(ended.stdout)["generalDiagnostics"]
        return {entry["range"]["start"]["line"] + 1 for entry in found if entry["severity"] == "error"}
    return {int(line) for line in re.findall(rf"^{file}:(\d+):.* ?error", ended.stdout, re.MULTILINE)}


@pytest.mark.parametrize("checker", CHECKERS)
def test_a_type_checker_accepts_what_is_right(checker: str) -> None:
    assert refused_lines(checker, "accepted.py") == set()


@pytest.mark.parametrize("checker", CHECKERS)
def test_a_type_checker_refuses_what_is_wrong_and_nothing_else(checker: str) -> None:
    text = (HERE / "refused.py").read_text()
    wanted = {number for number, line in enumerate(text.splitlines(), 1) if line.endswith("# refused")}

    assert refused_lines(checker, "refused.py") == wanted
