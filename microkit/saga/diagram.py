"""A definition as a picture: Mermaid, for documentation and for whoever asks what happens where it fails."""

from __future__ import annotations

from typing import Any

from microkit.saga.definition import Saga
from microkit.saga.step import Step, StepKind


def mermaid(saga: Saga[Any]) -> str:
    """The text of a Mermaid flowchart: steps downwards, the pivot as a hexagon, compensations beside their steps,
    dotted lines where a refusal or the last failure leads to. A step of this database stands with ``transaction``, one
    elsewhere with its time-out in seconds."""
    lines = ["flowchart TD", f'    begin(["{saga.name} v{saga.version}"]) --> s0']
    undone = [number for number, step in enumerate(saga.steps) if step.undo is not None]
    for number, step in enumerate(saga.steps):
        lines.append(f"    {_node(number, step)}")
        lines.append(f"    s{number} --> {f's{number + 1}' if number + 1 < len(saga.steps) else 'completed'}")
    lines.append('    completed(["completed"])')
    for number in reversed(undone):
        lines.append(f"    {_undo_node(number, saga.steps[number])}")
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


def _node(number: int, step: Step) -> str:
    where = _where(step, local=step.action_local)
    if step.kind is StepKind.PIVOT:
        return f's{number}{{{{"{_text(step.name)}<br/>pivot, {where}"}}}}'
    kind = "retriable, " if step.kind is StepKind.RETRIABLE else ""
    return f's{number}["{_text(step.name)}<br/>{kind}{where}"]'


def _undo_node(number: int, step: Step) -> str:
    undo = getattr(step.undo, "__name__", "undo")
    return f'u{number}["undo {_text(step.name)}<br/>{_text(undo)}, {_where(step, local=step.undo_local)}"]'


def _where(step: Step, *, local: bool) -> str:
    return "transaction" if local else f"at most {step.timeout:g} s"


def _text(name: str) -> str:
    """What Mermaid would read as its own becomes an entity."""
    return "".join(each if each.isalnum() or each in " -_." else f"#{ord(each)};" for each in name)
