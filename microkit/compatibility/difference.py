"""What a comparison finds."""

from __future__ import annotations

from dataclasses import dataclass

from microkit.compatibility.schema import Shape


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that the writer may write and the reader refuses.

    ``field`` is the way to it in a payload (``/lines/*/amount``), ``text`` has ``{reader}`` and ``{writer}`` in it;
    ``writer`` and ``reader`` are JSON pointers into their documents.
    """

    code: str
    field: str
    text: str
    writer: str
    reader: str


def differ(code: str, field: str, text: str, writer: Shape, reader: Shape, keyword: str = "") -> Difference:
    """A difference at a keyword of both; at the whole schema where one does not have it."""
    return Difference(code, field, text, writer.place(keyword), reader.place(keyword))


def quoted(text: str) -> str:
    """For a template of ``str.format``: braces of a pattern or a value stand for themselves."""
    return text.replace("{", "{{").replace("}", "}}")
