"""The chapter on security names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_every_protection_names_tests_that_exist() -> None:
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    sources = [path for folder in ("tests", "reference") for path in (ROOT / folder).rglob("test_*.py")]
    existing = set(re.findall(r"def (test_\w+)", "\n".join(path.read_text(encoding="utf-8") for path in sources)))

    named = re.findall(r"`(test_\w+)`", page)

    assert [name for name in named if name not in existing] == []
    assert len(named) > 50
