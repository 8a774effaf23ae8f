"""What the documentation claims about the repository is so."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_every_promise_names_tests_that_exist() -> None:
    table = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    sources = [*(ROOT / "tests").rglob("*.py"), *(ROOT / "microkit" / "testing").rglob("*.py")]
    existing = set(re.findall(r"def (test_\w+)", "\n".join(path.read_text(encoding="utf-8") for path in sources)))

    promises = [line for line in table.splitlines() if re.match(r"\| [A-Z].*\| `test_", line)]
    named = re.findall(r"`(test_\w+)`", "\n".join(promises))

    assert len(promises) == 12
    assert [name for name in named if name not in existing] == []


def test_the_floors_in_the_picture_are_the_floors_that_are_checked() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    checked = [layer.split(" | ") for layer in contracts[0]["layers"]]
    picture = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")

    drawn = re.findall(r"F\d\[\"<b>F\d</b> ([\w ·]+)", picture)

    assert sorted(name for floor in drawn for name in floor.strip().split(" · ")) == sorted(
        name for layer in checked for name in layer
    )
