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
STUB_BODIES = "invalid-implicit-return-in-function-with-stub-body"  # methods of contracts

FILES = ["accepted.py", "refused.py"]
CHECKERS = {
    "mypy": [BIN / "mypy", "--config-file", HERE.parent.parent / "pyproject.toml", "--no-error-summary"],
    "pyright": [BIN / "pyright", "--outputjson", "--pythonpath", sys.executable],
    "ty": [BIN / "ty", "check", "--output-format", "concise", "--ignore", STUB_BODIES, "--python", sys.prefix],
}


def refused(checker: str) -> set[tuple[str, int]]:
    """The files and lines that the checker refuses."""
    command = [str(part) for part in [*CHECKERS[checker], *FILES]]
    ended = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False)
    if checker == "pyright":
        found = json.loads(ended.stdout)["generalDiagnostics"]
        return {
            (Path(entry["file"]).name, entry["range"]["start"]["line"] + 1)
            for entry in found
            if entry["severity"] == "error"
        }
    return {(file, int(line)) for file, line in re.findall(r"^(\w+\.py):(\d+):.* ?error", ended.stdout, re.MULTILINE)}


@pytest.mark.parametrize("checker", CHECKERS)
def test_a_type_checker_accepts_what_is_right_and_refuses_what_is_wrong(checker: str) -> None:
    wanted = {
        (file, number)
        for file in FILES
        for number, line in enumerate((HERE / file).read_text().splitlines(), 1)
        if line.endswith("# refused")
    }

    assert {file for file, _ in wanted} == {"refused.py"}
    assert refused(checker) == wanted
