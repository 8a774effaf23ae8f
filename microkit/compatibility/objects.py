"""The fields of an object: what a writer may write, against what a reader takes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from microkit.compatibility.difference import Difference, differ, quoted
from microkit.compatibility.scalars import bounds
from microkit.compatibility.schema import Node, Shape

Compare = Callable[[Node, Node, str], list[Difference]]


class ObjectKeywords:
    """One object's schema against another's."""

    def __init__(self, writer: Shape, reader: Shape, field: str, compare: Compare) -> None:
        self._writer = writer
        self._reader = reader
        self._field = field
        self._compare = compare
        self._written = _Fields(writer)
        self._taken = _Fields(reader)

    def differences(self) -> Iterator[Difference]:
        yield from self._required()
        yield from bounds(self._writer, self._reader, self._field, "minProperties", "maxProperties")
        yield from self._names()
        for name in self._written.names:
            field = f"{self._field}/{name}"
            for place in self._taken.of(name):
                yield from self._compared(self._written.named(name), place, field)
        for pattern in self._written.patterns:
            written = self._written.patterned(pattern)
            for place in self._taken.wherever(pattern, self._written):
                yield from self._compared(written, place, f"{self._field}/*")
        further = self._written.further
        if further is not None:
            for place in self._taken.beyond(self._written):
                yield from self._compared(further, place, f"{self._field}/*")

    def _compared(self, writer: Node, reader: Node, field: str) -> Iterator[Difference]:
        if reader.schema is False:
            shape = Shape.of(writer)
            if not shape.nothing:
                text = "{reader} forbids fields that it does not know, {writer} may write this one"
                yield Difference("unknown-field", field, text, writer.pointer, reader.pointer)
        else:
            yield from self._compare(writer, reader, field)

    def _required(self) -> Iterator[Difference]:
        always = self._writer.keywords.get("required", ())
        for name in self._reader.keywords.get("required", ()):
            if name in always:
                continue
            known = name in self._written.names
            text = "{reader} requires it, {writer} " + ("may leave it out" if known else "does not have it")
            writer = self._written.named(name).pointer if known else self._writer.place("properties")
            yield Difference("required", f"{self._field}/{name}", text, writer, self._reader.place("required"))

    def _names(self) -> Iterator[Difference]:
        """``propertyNames``: of the fields that are declared, and of all others."""
        if "propertyNames" not in self._reader.keywords:
            return
        wanted = self._reader.part("propertyNames")
        document, pointer = self._writer.node.document, self._writer.place("properties")
        for name in self._written.names:
            if self._compare(Node(document, pointer, {"const": name}), wanted, self._field):
                text = quoted(f"no name that {{reader}} takes is {name!r}").replace("{{reader}}", "{reader}")
                yield differ("name", f"{self._field}/{name}", text, self._writer, self._reader, "propertyNames")
        if self._written.further is not None or self._written.patterns:
            own = {"type": "string"}
            names = (
                self._writer.part("propertyNames")
                if "propertyNames" in self._writer.keywords
                else Node(document, self._writer.node.pointer, own)
            )
            names = Node(names.document, names.pointer, {"allOf": [own, names.schema]})
            yield from self._compare(names, wanted, f"{self._field}/*")


class _Fields:
    """The fields of an object's schema, by name, by pattern and all others."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self.names = tuple(shape.keywords.get("properties", ()))
        self.patterns = tuple(shape.keywords.get("patternProperties", ()))

    @property
    def further(self) -> Node | None:
        """What a writer may write beside; ``None`` where it writes nothing else."""
        if "additionalProperties" in self._shape.keywords:
            found = self._shape.part("additionalProperties")
            return None if found.schema is False else found
        node = self._shape.node
        return None if self.names else Node(node.document, node.pointer, True)

    def named(self, name: str) -> Node:
        return self._shape.part("properties", name)

    def patterned(self, pattern: str) -> Node:
        return self._shape.part("patternProperties", pattern)

    def of(self, name: str) -> Iterator[Node]:
        """All schemas that a reader applies to a field of that name."""
        found = [self.named(name)] if name in self.names else []
        found += [self.patterned(pattern) for pattern in self.patterns if may_match(pattern, name)]
        yield from found
        sure = name in self.names or any(may_match(pattern, name) and _valid(pattern) for pattern in self.patterns)
        if not sure and "additionalProperties" in self._shape.keywords:
            yield self._shape.part("additionalProperties")

    def wherever(self, pattern: str, written: _Fields) -> Iterator[Node]:
        """All schemas that a reader may apply to a field whose name matches a writer's pattern."""
        yield from (self.named(name) for name in self.names if name not in written.names and may_match(pattern, name))
        if pattern in self.patterns:
            yield self.patterned(pattern)
            return
        yield from (self.patterned(other) for other in self.patterns if other not in written.patterns)
        if "additionalProperties" in self._shape.keywords:
            yield self._shape.part("additionalProperties")

    def beyond(self, written: _Fields) -> Iterator[Node]:
        """All schemas that a reader may apply to a field that a writer neither names nor has a pattern for."""
        for name in self.names:
            named = name in written.names or any(
                may_match(pattern, name) and _valid(pattern) for pattern in written.patterns
            )
            if not named:
                yield self.named(name)
        yield from (self.patterned(pattern) for pattern in self.patterns if pattern not in written.patterns)
        if "additionalProperties" in self._shape.keywords:
            yield self._shape.part("additionalProperties")


def may_match(pattern: str, text: str) -> bool:
    """Whether a pattern fits; also where that cannot be told, because it is none of Python's."""
    return not _valid(pattern) or re.search(pattern, text) is not None


def _valid(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True
