"""Whether a reader takes everything that a writer may write.

The writer's schema is closed: it writes the fields that it declares and no others, unless it says
``additionalProperties``. That is how events are published, and it is what makes a new optional field compatible. The
reader's schema is open, as JSON Schema is. No difference found means that every value which the writer can write is
valid for the reader; a difference may be found where there is none, in schemas too clever to compare.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from microkit.compatibility.difference import Difference, differ, quoted
from microkit.compatibility.objects import ObjectKeywords
from microkit.compatibility.scalars import bounds, numbers, one_value, strings
from microkit.compatibility.schema import Node, Shape
from microkit.compatibility.values import UNIONS, apart, described, few_values, listed, takes, types_of

_OPAQUE: Final = (
    *("not", "if", "then", "else", "contains", "minContains", "maxContains", "dependentRequired", "dependentSchemas"),
    *("dependencies", "unevaluatedProperties", "unevaluatedItems", "contentEncoding", "contentMediaType"),
    *("contentSchema", "$dynamicRef"),
)
"""Compared as they are written."""


def differences(writer: Node, reader: Node) -> list[Difference]:
    """All that the writer may write and the reader refuses. Empty: the reader takes everything."""
    return Reading().differences(writer, reader)


class Reading:
    """One comparison."""

    def __init__(self) -> None:
        self._under_way: set[tuple[int, int]] = set()

    def differences(self, writer: Node, reader: Node, field: str = "") -> list[Difference]:
        pair = (id(writer.schema), id(reader.schema))
        if pair in self._under_way and isinstance(writer.schema, dict) and isinstance(reader.schema, dict):
            return []  # recursive schemas: if they differ, that is found where this pair is under way
        self._under_way.add(pair)
        try:
            return self._shapes(Shape.of(writer), Shape.of(reader), field)
        finally:
            self._under_way.discard(pair)

    def _shapes(self, writer: Shape, reader: Shape, field: str) -> list[Difference]:
        found = list(dict.fromkeys(self._one(writer, reader, field)))
        for other in reader.others:
            more = self._shapes(writer, Shape.of(other), field)
            if more and not any(not self.differences(own, other, field) for own in writer.others):
                found += more
        return found

    def _one(self, writer: Shape, reader: Shape, field: str) -> Iterator[Difference]:
        """Takes the writer apart until it is one type, or one value."""
        if writer.nothing or not (reader.keywords or reader.nothing):
            return
        if reader.nothing:
            yield differ("refused", field, "{writer} may write it, {reader} takes nothing here", writer, reader)
            return
        union = next((name for name in UNIONS if name in writer.keywords), None)
        if union is not None:
            for branch in writer.parts(union):
                yield from self._shapes(writer.plus(branch, instead_of=union), reader, field)
            return
        values = few_values(writer)
        if values is not None:
            for value in values:
                yield from self._single(writer.having(enum=[value]), reader, field)
            return
        for kind in types_of(writer):
            yield from self._single(writer.having(type=kind), reader, field)

    def _single(self, writer: Shape, reader: Shape, field: str) -> Iterator[Difference]:
        if "anyOf" in reader.keywords:
            yield from self._any_of(writer, reader, field)
        if "oneOf" in reader.keywords:
            yield from self._one_of(writer, reader, field)
        yield from _opaque(writer, reader, field)
        values = few_values(writer)
        if values is not None:
            for value in values:
                yield from one_value(value, writer, reader, field)
        else:
            yield from self._one_type(writer, reader, field)

    def _one_type(self, writer: Shape, reader: Shape, field: str) -> Iterator[Difference]:
        kind = writer.keywords["type"]
        if not takes(reader, kind):
            text = f"{{writer}} may write {kind}, {{reader}} takes {' or '.join(types_of(reader))}"
            yield differ("type", field, text, writer, reader, "type")
            return
        few = few_values(reader)
        if few is not None:
            text = f"{{writer}} may write any {kind}, {{reader}} takes only {quoted(listed(few))}"
            yield differ("enum", field, text, writer, reader, "enum" if "enum" in reader.keywords else "const")
        elif kind in ("number", "integer"):
            yield from numbers(writer, reader, field)
        elif kind == "string":
            yield from strings(writer, reader, field)
        elif kind == "array":
            yield from self._arrays(writer, reader, field)
        elif kind == "object":
            yield from ObjectKeywords(writer, reader, field, self.differences).differences()

    def _any_of(self, writer: Shape, reader: Shape, field: str) -> Iterator[Difference]:
        branches = reader.parts("anyOf")
        if all(self._shapes(writer, Shape.of(branch), field) for branch in branches):
            yield from self._closest(writer, reader, branches, "anyOf", field)

    def _one_of(self, writer: Shape, reader: Shape, field: str) -> Iterator[Difference]:
        parts = reader.parts("oneOf")
        branches = [Shape.of(part) for part in parts]
        for branch in branches:
            others = [other for other in branches if other is not branch]
            if all(apart(writer, other) for other in others) and not self._shapes(writer, branch, field):
                return
        yield from self._closest(writer, reader, parts, "oneOf", field)

    def _closest(
        self, writer: Shape, reader: Shape, branches: list[Node], union: str, field: str
    ) -> Iterator[Difference]:
        """What to say of a value that fits no branch: what differs from the one that it seems to be meant for."""
        meant = [branch for branch in branches if not apart(writer, Shape.of(branch))]
        found = self._shapes(writer, Shape.of(meant[0]), field) if len(meant) == 1 else []
        if found:
            yield from found
        else:
            what = quoted(described(writer))
            text = f"{{writer}} may write {what}, which is not one of the {len(branches)} alternatives of {{reader}}"
            yield differ("alternatives", field, text, writer, reader, union)

    def _arrays(self, writer: Shape, reader: Shape, field: str) -> Iterator[Difference]:
        yield from bounds(writer, reader, field, "minItems", "maxItems")
        longest = writer.keywords.get("maxItems")
        unique = reader.keywords.get("uniqueItems") and not writer.keywords.get("uniqueItems")
        if unique and (longest is None or longest > 1):
            text = "{reader} takes no item twice, {writer} may repeat one"
            yield differ("unique", field, text, writer, reader, "uniqueItems")
        written, taken = _Items.of(writer), _Items.of(reader)
        leading = max(len(written.leading), len(taken.leading))
        positions = leading + 1 if longest is None else min(leading + 1, longest)
        for index in range(positions):
            here = f"{field}/{index}" if index < leading else f"{field}/*"
            yield from self.differences(written.at(index), taken.at(index), here)


def _opaque(writer: Shape, reader: Shape, field: str) -> Iterator[Difference]:
    for keyword in _OPAQUE:
        if keyword not in reader.keywords:
            continue
        wanted = reader.keywords[keyword]
        if writer.keywords.get(keyword) != wanted or "$ref" in str(wanted):
            text = f"{keyword} of {{reader}} cannot be compared with that of {{writer}}"
            yield differ("incomparable", field, text, writer, reader, keyword)


@dataclass(frozen=True, slots=True)
class _Items:
    """The items of an array: the first ones, each with a schema of its own, and all that follow."""

    leading: list[Node]
    following: Node

    @classmethod
    def of(cls, shape: Shape) -> _Items:
        """Draft 2020-12 has ``prefixItems`` and ``items``, draft 7 has ``items`` and ``additionalItems``."""
        old = isinstance(shape.keywords.get("items"), list)
        following = "additionalItems" if old else "items"
        node = shape.node
        return cls(
            shape.parts("items" if old else "prefixItems"),
            shape.part(following) if following in shape.keywords else Node(node.document, node.pointer, True),
        )

    def at(self, index: int) -> Node:
        return self.leading[index] if index < len(self.leading) else self.following
