"""A definition as Mermaid."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from pydantic import BaseModel

from microkit.db import Transaction
from microkit.saga import NO_EFFECT, Saga, compensatable, pivot, retriable
from microkit.saga.diagram import mermaid
from reference.billpay.payment.sagas import pay_bill

DOCS = Path(__file__).parent.parent.parent.parent / "docs"


class Nothing(BaseModel): ...


async def look(state: Nothing) -> None: ...
async def hold(state: Nothing) -> None: ...
async def let_go(state: Nothing) -> None: ...
async def pay(state: Nothing) -> None: ...
async def tell(state: Nothing, tx: Transaction) -> None: ...


def test_a_diagram_has_the_steps_the_pivot_and_the_way_back() -> None:
    saga = Saga(
        "trip",
        Nothing,
        [
            compensatable(look, undo=NO_EFFECT, timeout=1),
            compensatable(hold, undo=let_go, timeout=2.5, name="hold a room; now"),
            pivot(pay, timeout=30),
            retriable(tell),
        ],
        version=2,
    )

    assert mermaid(saga).splitlines() == [
        "flowchart TD",
        '    begin(["trip v2"]) --> s0',
        '    s0["look<br/>at most 1 s"]',
        "    s0 --> s1",
        '    s1["hold a room#59; now<br/>at most 2.5 s"]',
        "    s1 --> s2",
        '    s2{{"pay<br/>pivot, at most 30 s"}}',
        "    s2 --> s3",
        '    s3["tell<br/>retriable, transaction"]',
        "    s3 --> completed",
        '    completed(["completed"])',
        '    u1["undo hold a room#59; now<br/>let_go, at most 2.5 s"]',
        "    u1 --> compensated",
        "    s0 -. refused or given up .-> compensated",
        "    s1 -. refused .-> compensated",
        "    s1 -. given up .-> u1",
        "    s2 -. refused .-> u1",
        '    compensated(["compensated"])',
        "    class s2 pivot",
        "    class u1 undo",
        "    classDef pivot stroke-width:4px",
        "    classDef undo stroke-dasharray:4",
    ]


def test_the_diagram_in_the_documentation_is_that_of_the_definition() -> None:
    page = (DOCS / "sagas-in-operation.md").read_text(encoding="utf-8")

    assert f"```mermaid\n{mermaid(pay_bill)}```" in page


def test_the_diagram_of_groups_conditions_and_events_is_that_of_the_chapter(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (DOCS / "sagas.md").read_text(encoding="utf-8")
    block = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert block is not None
    chapter = ModuleType("chapter")
    monkeypatch.setitem(sys.modules, "chapter", chapter)
    exec(block[1], vars(chapter))

    drawn = mermaid(chapter.book)
    assert f"```mermaid\n{drawn}```" in page
    assert 'subgraph s0["hold: at once"]' in drawn
    assert "if has_coupon" in drawn
    assert 's1{{"payment<br/>pivot, waits for Paid, at most 86400 s"}}' in drawn
