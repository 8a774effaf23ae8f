"""When a story holds, and how it is told."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from microkit.console.narrator import TerminalNarrator
from microkit.console.story import Check, Silent, Story, StoryBroken

pytestmark = pytest.mark.anyio


def test_a_story_that_checked_nothing_does_not_hold() -> None:
    assert Story({}, "", Silent()).document()["ok"] is False


def test_one_check_that_fails_fails_the_story() -> None:
    story = Story({}, "", Silent())
    story.check("so", True)
    assert story.ok
    story.check("not so", False, 7)
    story.check("so again", True)
    assert not story.ok
    assert story.document()["checks"][1] == {"sentence": "not so", "ok": False, "detail": "7"}


async def test_a_service_that_does_not_answer_breaks_the_story() -> None:
    async with Story({"gateway": "http://127.0.0.1:1"}, "http://127.0.0.1:1", Silent()) as story:
        with pytest.raises(StoryBroken, match=r"Somebody asks: GET http://127\.0\.0\.1:1/x was not answered"):
            await story.call("Somebody asks", "GET", "/x")
        with pytest.raises(StoryBroken, match="The console"):
            await story.show_events("0" * 32)


def test_a_saga_and_a_trace_are_told_as_trees() -> None:
    out = io.StringIO()
    narrator = TerminalNarrator(Console(file=out, width=100))
    step = {"step": "pay", "direction": "action", "attempt": 2, "status": "refused", "error": "too [little] money"}
    undo = {"step": "reserve", "direction": "undo", "attempt": 1, "status": "done", "error": None}
    failure = {"step": "pay", "reason": "too little money", "type": None}
    narrator.sagas([{"name": "buy", "id": "7", "status": "compensated", "steps": [step, undo], "failure": failure}])
    span: dict[str, Any] = {
        "service": "shop",
        "name": "POST /buy",
        "kind": "server",
        "span_id": "a",
        "parent_id": "outside",
    }
    span |= {"start_ns": 1_000_000, "end_ns": 3_000_000, "status": "error", "attributes": {}}
    child: dict[str, Any] = {
        **span,
        "service": "stock",
        "name": "process",
        "kind": "consumer",
        "span_id": "b",
        "parent_id": "a",
    }
    child["attributes"] = {"messaging.message.type": "shop.orders.Bought"}
    narrator.trace({"trace_id": "t", "spans": [span, child]})
    narrator.check(Check("It is [so]", False, "no"))
    lines = out.getvalue().splitlines()
    assert lines == [
        "saga buy 7: compensated",
        "├── pay: refused attempt 2 (too [little] money)",
        "├── undo reserve: done",
        "└── reason: too little money",
        "trace t",
        "└── shop POST /buy server  +0.0 ms, 2.0 ms error",
        "    └── stock process Bought consumer  +0.0 ms, 2.0 ms error",
        "  ✗ It is [so] (no)",
    ]
