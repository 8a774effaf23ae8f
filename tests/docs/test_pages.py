"""What the documentation says is tried, block by block."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.walkthrough import Walkthrough, blocks

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
RUN = [page for page in PAGES if any(block.language in {"python", "console"} for block in blocks(page))]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", RUN, ids=name)
def test_every_block_of_a_page_does_what_it_says(page: Path, tmp_path: Path) -> None:
    runnable = [block for block in blocks(page) if block.language in {"python", "console"} and block.not_run is None]

    assert len(Walkthrough(page, tmp_path).follow()) >= len(runnable)


def test_pages_that_start_a_system_do_so_on_ports_of_their_own() -> None:
    """So they can be followed at the same time, by several readers on one machine, and beside billpay."""
    users: dict[str, list[str]] = {}
    for page in RUN:
        if any(block.background_until for block in blocks(page)):
            for port in set(re.findall(r"port[= ](\d{4})\b", page.read_text(encoding="utf-8"))):
                users.setdefault(port, []).append(name(page))

    assert len(users) >= 6
    assert {port: pages for port, pages in users.items() if len(pages) > 1 or port.startswith("3")} == {}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_block_that_is_not_run_says_why(page: Path) -> None:
    text = page.read_text(encoding="utf-8")

    for language in re.findall(r"^```(\w*)", text, re.MULTILINE)[::2]:
        assert language != "bash", "write a console block, whose commands are run"
    for block in blocks(page):
        assert block.not_run is None or len(block.not_run) > 10
