"""Texts, numbers, lengths and single values: what a writer may write, against what a reader takes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Any, Final

from microkit.compatibility.difference import Difference, differ, quoted
from microkit.compatibility.schema import Shape
from microkit.compatibility.values import few_values, kind_of, listed, same, takes, types_of

_STRUCTURE: Final = frozenset(
    {
        *("properties", "patternProperties", "additionalProperties", "propertyNames", "required"),
        *("minProperties", "maxProperties", "prefixItems", "items", "additionalItems"),
        *("minItems", "maxItems", "uniqueItems"),
    }
)


def bounds(writer: Shape, reader: Shape, field: str, lowest: str, highest: str) -> Iterator[Difference]:
    """Of lengths and counts."""
    least, most = reader.keywords.get(lowest, 0), reader.keywords.get(highest)
    own_least, own_most = writer.keywords.get(lowest, 0), writer.keywords.get(highest)
    if own_least < least:
        text = f"{lowest} of {{reader}} is {least}, of {{writer}} {own_least}"
        yield differ("range", field, text, writer, reader, lowest)
    if most is not None and (own_most is None or own_most > most):
        text = f"{highest} of {{reader}} is {most}, {{writer}} has {'none' if own_most is None else own_most}"
        yield differ("range", field, text, writer, reader, highest)


def strings(writer: Shape, reader: Shape, field: str) -> Iterator[Difference]:
    yield from bounds(writer, reader, field, "minLength", "maxLength")
    for keyword in ("pattern", "format"):
        wanted, written = reader.keywords.get(keyword), writer.keywords.get(keyword)
        if wanted is not None and wanted != written:
            own = "none" if written is None else quoted(repr(written))
            text = f"{keyword} of {{reader}} is {quoted(repr(wanted))}, {{writer}} has {own}"
            yield differ(keyword, field, text, writer, reader, keyword)


def numbers(writer: Shape, reader: Shape, field: str) -> Iterator[Difference]:
    for names, sign in ((("minimum", "exclusiveMinimum"), 1), (("maximum", "exclusiveMaximum"), -1)):
        own = {name: writer.keywords[name] for name in names if name in writer.keywords}
        for keyword in names:
            limit = reader.keywords.get(keyword)
            if limit is not None and not any(
                sign * bound > sign * limit or (bound == limit and keyword in (name, names[0]))
                for name, bound in own.items()
            ):
                told = ", ".join(f"{name} {bound}" for name, bound in own.items())
                text = f"{keyword} of {{reader}} is {limit}, {{writer}} has {told or 'none'}"
                yield differ("range", field, text, writer, reader, keyword)
    step = reader.keywords.get("multipleOf")
    if step is not None:
        own_step = writer.keywords.get("multipleOf", 1 if writer.keywords["type"] == "integer" else None)
        if own_step is None or (Fraction(str(own_step)) / Fraction(str(step))).denominator != 1:
            text = f"multipleOf of {{reader}} is {step}, {{writer}} has {'none' if own_step is None else own_step}"
            yield differ("range", field, text, writer, reader, "multipleOf")


def one_value(value: Any, writer: Shape, reader: Shape, field: str) -> Iterator[Difference]:
    """The writer may write just this value."""
    kind, shown = kind_of(value), quoted(listed([value]))
    if not takes(reader, kind):
        text = f"{{writer}} may write {shown}, {{reader}} takes {' or '.join(types_of(reader))}"
        yield differ("type", field, text, writer, reader, "type")
        return
    keyword = next((name for name in ("const", "enum") if name in reader.keywords), None)
    allowed = few_values(reader) if keyword is not None else None
    if keyword is not None and allowed is not None and not any(same(value, one) for one in allowed):
        text = f"{{writer}} may write {shown}, {{reader}} takes only {quoted(listed(allowed))}"
        yield differ("enum", field, text, writer, reader, keyword)
    elif kind in ("integer", "number"):
        exactly = {"type": kind, "minimum": value, "maximum": value, "multipleOf": abs(value)}
        yield from numbers(replace(writer, keywords=exactly, places={}), reader, field)
    elif kind == "string":
        exactly = {**writer.keywords, "minLength": len(value), "maxLength": len(value)}
        pattern = reader.keywords.get("pattern")
        if pattern is not None and _matches(pattern, value):
            exactly["pattern"] = pattern
        yield from strings(replace(writer, keywords=exactly, places={}), reader, field)
    elif kind in ("array", "object") and allowed is None and _STRUCTURE & reader.keywords.keys():
        text = f"{{writer}} may write {shown}, which cannot be compared with what {{reader}} takes"
        yield differ("incomparable", field, text, writer, reader)


def _matches(pattern: str, text: str) -> bool:
    try:
        return re.search(pattern, text) is not None
    except re.error:
        return False  # none of Python's patterns: it cannot be told
