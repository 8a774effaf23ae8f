"""A definition as a picture: Mermaid, for documentation and for whoever asks what happens where it fails."""

from __future__ import annotations

from typing import Any

from microkit.saga.awaiting import Awaited
from microkit.saga.definition import Saga
from microkit.saga.step import Step, StepKind


def mermaid(saga: Saga[Any]) -> str:
    """The text of a Mermaid flowchart: steps downwards, the pivot as a hexagon, compensations beside their steps,
    dotted lines where a refusal or the last failure leads to. A step of this database stands with ``transaction``, one
    elsewhere with its time-out in seconds, one that waits with the events and how long; a slanted box sends a command.
    The branches of a group stand in a frame; a step with a condition says so."""
    lines = ["flowchart TD", f'    begin(["{saga.name} v{saga.version}"]) --> s0']
    undone = [number for number, step in enumerate(saga.steps) if step.undo is not None]
    for number, step in enumerate(saga.steps):
        lines += _frame(f"s{number}", step, step.branches) if step.branches else [f"    {_node(f's{number}', step)}"]
        lines.append(f"    s{number} --> {f's{number + 1}' if number + 1 < len(saga.steps) else 'completed'}")
    lines.append('    completed(["completed"])')
    for number in reversed(undone):
        step = saga.steps[number]
        undoing = tuple(each for each in step.branches if each.undo is not None)
        lines += _frame(f"u{number}", step, undoing) if undoing else [f"    {_undo_node(f'u{number}', step)}"]
        lines.append(f"    u{number} --> {_before(undone, number)}")
    turning = [number for number, step in enumerate(saga.steps) if step.kind is not StepKind.RETRIABLE]
    for number in turning:
        lines += _ways_back(number, saga.steps[number], _before(undone, number))
    if turning:
        lines.append('    compensated(["compensated"])')
    lines += [f"    class s{n} pivot" for n, step in enumerate(saga.steps) if step.kind is StepKind.PIVOT]
    lines += [f"    class u{n} undo" for n in undone]
    lines.append("    classDef pivot stroke-width:4px")
    lines.append("    classDef undo stroke-dasharray:4")
    return "\n".join(lines) + "\n"


def _ways_back(number: int, step: Step, before: str) -> list[str]:
    refused = f"    s{number} -. refused .-> {before}"
    if step.branches:
        return [f"    s{number} -. refused or given up .-> {before if step.undo is None else f'u{number}'}"]
    if step.awaits is not None and step.undo is not None:
        return [refused, f"    s{number} -. time over .-> u{number}"]
    if step.action_local or (step.kind is StepKind.COMPENSATABLE and step.undo is None):
        return [f"    s{number} -. refused or given up .-> {before}"]
    if step.kind is StepKind.PIVOT:
        return [refused]  # one that never answers is stuck
    # Its outcome is unknown when it is given up: its own compensation runs as well.
    return [refused, f"    s{number} -. given up .-> u{number}"]


def _before(undone: list[int], number: int) -> str:
    """What is undone next after, or for a refusal of, step ``number``."""
    earlier = [each for each in undone if each < number]
    return f"u{earlier[-1]}" if earlier else "compensated"


def _frame(node: str, step: Step, branches: tuple[Step, ...]) -> list[str]:
    """A group: its branches in a frame, without order."""
    back = node.startswith("u")
    inner = [
        _undo_node(f"{node}b{place}", each) if back else _node(f"{node}b{place}", each)
        for place, each in enumerate(branches)
    ]
    title = f"undo {step.name}" if back else step.name
    return [f'    subgraph {node}["{_text(title)}: at once"]', *(f"        {each}" for each in inner), "    end"]


def _node(node: str, step: Step) -> str:
    where = _where(step, step.awaits, local=step.action_local)
    if step.when is not None:
        where += f"<br/>if {_text(getattr(step.when, '__name__', 'needed').replace('<lambda>', 'needed'))}"
    if step.kind is StepKind.PIVOT:
        return f'{node}{{{{"{_text(step.name)}<br/>pivot, {where}"}}}}'
    kind = "retriable, " if step.kind is StepKind.RETRIABLE else ""
    return _box(node, f"{_text(step.name)}<br/>{kind}{where}", step.awaits)


def _undo_node(node: str, step: Step) -> str:
    undo = getattr(step.undo, "__name__", "undo") if step.undo_awaits is None else step.undo_awaits.title
    where = _where(step, step.undo_awaits, local=step.undo_local)
    return _box(node, f"undo {_text(step.name)}<br/>{_text(undo)}, {where}", step.undo_awaits)


def _box(node: str, text: str, awaits: Awaited | None) -> str:
    if awaits is not None and awaits.command is not None:
        return f'{node}[/"{text}"/]'
    return f'{node}(["{text}"])' if awaits is not None else f'{node}["{text}"]'


def _where(step: Step, awaits: Awaited | None, *, local: bool) -> str:
    if awaits is not None:
        events = " or ".join(event.__name__ for event in awaits.events)
        return f"waits for {_text(events)}, at most {awaits.timeout:g} s"
    return "transaction" if local else f"at most {step.timeout:g} s"


def _text(name: str) -> str:
    """What Mermaid would read as its own becomes an entity."""
    return "".join(each if each.isalnum() or each in " -_." else f"#{ord(each)};" for each in name)
