"""What commands print: JSON and nothing else, or tables for people."""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

IN_A_PIPE = 200
"""Columns of a table that goes into a file or a pipe."""


def print_json(document: Any) -> None:
    """One document on one line, at once: the next one may take its time."""
    sys.stdout.write(json_module.dumps(document, default=_json) + "\n")
    sys.stdout.flush()


def print_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table; cells are plain text, and the first of each row stays whole, to be copied."""
    table = Table()
    for number, heading in enumerate(headings):
        table.add_column(heading, overflow="fold", no_wrap=number == 0)
    for row in rows:
        table.add_row(*(escape(plain(cell)) for cell in row))
    out = to_people()
    out.print(f"[bold]{escape(title)}")
    out.print(table)


def say(sentence: str) -> None:
    """One line, however long."""
    to_people().print(escape(plain(sentence)), soft_wrap=True, highlight=False)


def to_people() -> Console:
    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else IN_A_PIPE)


def plain(value: object) -> str:
    """As text that cannot speak to the terminal: what came in a message is printed, not obeyed."""
    text = "" if value is None else str(value)
    return "".join(each if each.isprintable() or each == "\n" else repr(each)[1:-1] for each in text)


def short(value: object, longest: int = 100) -> str:
    text = plain(value).replace("\n", " ")
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def clock(time: str | None) -> str:
    """An instant, to the second, in UTC as all logs have it."""
    return datetime.fromisoformat(time).strftime("%Y-%m-%d %H:%M:%S") if time else ""


def seconds(age: float | None) -> str:
    """``3.2 s``, ``4 min``, ``7 h``."""
    if age is None:
        return ""
    if age < 120:
        return f"{age:.1f} s"
    return f"{age / 60:.0f} min" if age < 7200 else f"{age / 3600:.0f} h"


def _json(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def value_of(document: Mapping[str, Any]) -> str:
    """The value of a message as a person reads it."""
    if document["value"] is not None:
        return json_module.dumps(document["value"], ensure_ascii=False)
    if "value_text" in document:
        return plain(document["value_text"])
    return f"{document['value_base64']} (Base64)" if "value_base64" in document else "null"
