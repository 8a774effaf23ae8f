"""The fields that a schema declares, at any depth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from microkit.compatibility.schema import Node, Shape
from microkit.compatibility.values import UNIONS


@dataclass(frozen=True, slots=True)
class Place:
    """Where a field stands. ``may_go`` says that it may be left out and is marked as deprecated."""

    pointer: str
    required: bool
    may_go: bool


def fields_of(node: Node) -> Iterator[tuple[str, Place]]:
    """Each field once for each branch that has it: the way to it (``/lines/*/amount``), and its place."""
    yield from _within(node, "", frozenset())


def _within(node: Node, way: str, above: frozenset[int]) -> Iterator[tuple[str, Place]]:
    if id(node.schema) in above:
        return  # a recursive schema: its fields are told already
    shape = Shape.of(node)
    above |= {id(node.schema)}
    for union in UNIONS:
        for branch in shape.parts(union):
            yield from _within(branch, way, above)
    required = shape.keywords.get("required", ())
    for name in shape.keywords.get("properties", ()):
        field = shape.part("properties", name)
        deprecated = isinstance(field.schema, dict) and bool(field.schema.get("deprecated"))
        yield f"{way}/{name}", Place(field.pointer, name in required, deprecated and name not in required)
        yield from _within(field, f"{way}/{name}", above)
    yield from _below(shape, way, above)


def _below(shape: Shape, way: str, above: frozenset[int]) -> Iterator[tuple[str, Place]]:
    """In what a schema holds beside named fields: items of arrays, values of mappings."""
    for keyword in ("items", "additionalProperties", "additionalItems", "prefixItems"):
        found = shape.keywords.get(keyword)
        if isinstance(found, dict):
            yield from _within(shape.part(keyword), f"{way}/*", above)
        elif isinstance(found, list):
            for index, item in enumerate(shape.parts(keyword)):
                yield from _within(item, f"{way}/{index}", above)
    for pattern in shape.keywords.get("patternProperties", ()):
        yield from _within(shape.part("patternProperties", pattern), f"{way}/*", above)
