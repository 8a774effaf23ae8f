"""The story told in a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

from microkit.console.story import Call, Check, Document

COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "bright_cyan", "bright_magenta", "bright_green")


class TerminalNarrator:
    """Prints each thing as it happens. Services keep one colour throughout."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._colours: dict[str, str] = {}

    def chapter(self, title: str) -> None:
        self._console.print()
        self._console.rule(f"[bold]{escape(title)}", align="left")

    def call(self, call: Call) -> None:
        colour = "green" if call.as_expected else "yellow"
        asked = f", asked {call.asked} times" if call.asked > 1 else ""
        self._line_out(f"[{colour}]{call.status}[/] [bold]{escape(call.title)}[/]")
        self._line_out(f"    [dim]{call.method} {escape(call.url)}  {call.milliseconds:.0f} ms{asked}[/]")

    def events(self, events: list[Document]) -> None:
        self._console.print("Events, in the order of their publication:" if events else "No events.")
        if not events:
            return
        table = Table(box=None, pad_edge=False)
        for heading in ("from", "event", "key", "state"):
            table.add_column(heading, header_style="dim", overflow="fold")
        for event in events:
            name = event["type"].rpartition(".")[2]
            group = event.get("redriven_for")
            state = f"{event['state']}, redriven for {escape(group)}" if group else event["state"]
            table.add_row(self._service(event["service"]), name, f"[dim]{event['key']}[/]", state)
        self._console.print(table)

    def sagas(self, sagas: list[Document]) -> None:
        for saga in sagas:
            colour = {"completed": "green", "compensated": "yellow"}.get(saga["status"], "red")
            tree = Tree(f"saga [bold]{saga['name']}[/] [dim]{saga['id']}[/]: [{colour}]{saga['status']}[/]")
            for step in saga["steps"]:
                tree.add(_step(step))
            if saga.get("failure"):
                tree.add(f"[yellow]reason: {escape(_reason(saga['failure']))}")
            self._console.print(tree)

    def trace(self, trace: Document) -> None:
        spans = trace["spans"]
        tree = Tree(f"trace [bold]{trace.get('trace_id', '')}[/]")
        if not spans:
            tree.add("[red]no spans")
        known = {span["span_id"] for span in spans}
        began = min((span["start_ns"] for span in spans), default=0)
        self._grow(tree, [span for span in spans if span["parent_id"] not in known], spans, began)
        self._console.print(tree)

    def check(self, check: Check) -> None:
        mark = "[green]✓[/]" if check.ok else "[bold red]✗[/]"
        detail = f" [dim]({escape(check.detail)})[/]" if check.detail else ""
        self._line_out(f"  {mark} {escape(check.sentence)}{detail}")

    def _line_out(self, line: str) -> None:
        """One line, however long: URLs are there to be copied."""
        self._console.print(line, soft_wrap=True, highlight=False)

    def _grow(self, tree: Tree, here: Iterable[Document], spans: list[Document], began: int) -> None:
        for span in here:
            branch = tree.add(self._line(span, began))
            self._grow(branch, [child for child in spans if child["parent_id"] == span["span_id"]], spans, began)

    def _line(self, span: Document, began: int) -> str:
        failed = " [red]error[/]" if span["status"] == "error" else ""
        after = (span["start_ns"] - began) / 1e6
        took = (span["end_ns"] - span["start_ns"]) / 1e6
        event = str(span["attributes"].get("messaging.message.type", "")).rpartition(".")[2]
        name = f"{span['name']} {event}".rstrip()
        return (
            f"{self._service(span['service'])} {escape(name)} "
            f"[dim]{span['kind']}  +{after:.1f} ms, {took:.1f} ms[/]{failed}"
        )

    def _service(self, name: str) -> str:
        colour = self._colours.setdefault(name, COLOURS[len(self._colours) % len(COLOURS)])
        return f"[{colour}]{escape(name)}[/]"


def _step(step: Document) -> str:
    colour = "green" if step["status"] == "done" else "yellow"
    undo = "undo " if step["direction"] == "undo" else ""
    error = f" [dim]({escape(str(step['error']))})[/]" if step.get("error") else ""
    again = f" [dim]attempt {step['attempt']}[/]" if step["attempt"] > 1 else ""
    return f"{undo}{step['step']}: [{colour}]{step['status']}[/]{again}{error}"


def _reason(failure: Any) -> str:
    if isinstance(failure, dict):
        return str(failure.get("detail") or failure.get("reason") or failure.get("title") or failure)
    return str(failure)
