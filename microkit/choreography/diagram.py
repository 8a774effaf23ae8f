"""A process as a Mermaid flowchart: its events in the order expected, and those that end it."""

from __future__ import annotations

from microkit.choreography.process import Process


def mermaid(process: Process) -> str:
    """The text of the flowchart, with a line break at its end."""
    lines = ["flowchart TD", f'    begin(["{process.name}, by {_fields(process)}"]) --> e0']
    for position, event in enumerate(process.expected):
        lines.append(f'    e{position}["{event.__name__}<br/>{event.event_topic}"]')
        if event in process.ends:
            lines.append(f"    e{position} --> ended")
        if position + 1 < len(process.expected):
            lines.append(f"    e{position} --> e{position + 1}")
    for number, event in enumerate(each for each in process.ends if each not in process.expected):
        lines += [
            f'    x{number}["{event.__name__}<br/>{event.event_topic}"]',
            f"    begin -. at any time .-> x{number}",
        ]
        lines.append(f"    x{number} --> ended")
    if process.stuck_after is not None:
        lines.append(f'    stuck{{{{"stuck: no event for {process.stuck_after:g} s"}}}}')
    return "\n".join([*lines, '    ended(["ended"])', ""])


def _fields(process: Process) -> str:
    return ", ".join(dict.fromkeys(process.fields.values()))
