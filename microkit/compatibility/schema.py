"""A JSON Schema as the comparison sees it: references followed, annotations left out, each part with its place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from microkit.errors import ConfigurationError

_ANNOTATIONS: Final = frozenset(
    {
        *("title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly"),
        *("externalDocs", "discriminator", "$comment", "$id", "$schema", "$defs", "definitions", "$anchor"),
    }
)
_TOGETHER: Final = (
    frozenset({"properties", "patternProperties", "additionalProperties"}),
    frozenset({"prefixItems", "items", "additionalItems"}),
    frozenset({"contains", "minContains", "maxContains"}),
    frozenset({"if", "then", "else"}),
)
"""Keywords that mean something else when one of them stands in another schema."""


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """A schema at its place in a document."""

    document: Mapping[str, Any]
    pointer: str
    schema: Any

    def child(self, *path: str | int) -> Node:
        """What stands at ``path`` below it."""
        schema, pointer = self.schema, self.pointer
        for part in path:
            schema = schema[part]
            pointer += "/" + str(part).replace("~", "~0").replace("/", "~1")
        return Node(self.document, pointer, schema)

    def target(self, reference: str) -> Node:
        """What a ``$ref`` within the document names.

        Raises:
            ConfigurationError: nothing is there, or it is in another document.
        """
        found: Any = self.document
        if reference != "#" and not reference.startswith("#/"):
            raise ConfigurationError(f"{self.pointer}: the reference {reference!r} leads out of the document")
        for part in reference[2:].split("/") if reference != "#" else ():
            name = part.replace("~1", "/").replace("~0", "~")
            try:
                found = found[int(name)] if isinstance(found, list) else found[name]
            except (KeyError, IndexError, ValueError, TypeError):
                raise ConfigurationError(f"{self.pointer}: there is nothing at the reference {reference!r}") from None
        return Node(self.document, reference[1:], found)


@dataclass(slots=True, eq=False)
class Shape:
    """The keywords of a schema, of all that it refers to and of all members of its ``allOf``.

    Keywords that occur twice, with different values, stay apart in ``others``: schemas that must be met as well.
    ``nothing`` says that no value fits.
    """

    node: Node
    keywords: dict[str, Any] = field(default_factory=dict)
    places: dict[str, Node] = field(default_factory=dict)
    others: list[Node] = field(default_factory=list)
    nothing: bool = False

    @classmethod
    def of(cls, node: Node) -> Shape:
        return cls(node).absorb(node)

    def plus(self, node: Node, *, instead_of: str) -> Shape:
        """The shape with one branch of a union in place of the union."""
        rest = {name: value for name, value in self.keywords.items() if name != instead_of}
        return Shape(node, rest, dict(self.places), list(self.others), self.nothing).absorb(node)

    def having(self, **keywords: Any) -> Shape:
        """The shape with keywords replaced."""
        return replace(self, keywords={**self.keywords, **keywords})

    def place(self, keyword: str) -> str:
        """The pointer of a keyword, or of the whole schema, where it does not have it."""
        node = self.places.get(keyword)
        return self.node.pointer if node is None else f"{node.pointer}/{keyword}"

    def part(self, keyword: str, *path: str | int) -> Node:
        """The schema within a keyword."""
        return self.places[keyword].child(keyword, *path)

    def parts(self, keyword: str) -> list[Node]:
        """The schemas in a list."""
        return [self.part(keyword, index) for index in range(len(self.keywords.get(keyword, ())))]

    def absorb(self, node: Node) -> Shape:
        """Adds what must be met as well."""
        waiting, followed = [node], {node.pointer}
        while waiting:
            here = waiting.pop(0)
            if here.schema is False:
                self.nothing = True
            if not isinstance(here.schema, Mapping):
                if not isinstance(here.schema, bool):
                    raise ConfigurationError(f"{here.pointer} is no JSON Schema")
                continue
            if "$ref" in here.schema and (target := here.target(here.schema["$ref"])).pointer not in followed:
                followed.add(target.pointer)
                waiting.append(target)
            waiting += [here.child("allOf", index) for index in range(len(here.schema.get("allOf", ())))]
            for group in _groups(here.schema):
                self._take(here, group)
        return self

    def _take(self, here: Node, group: Mapping[str, Any]) -> None:
        together = next((names for names in _TOGETHER if names & group.keys()), frozenset(group))
        taken = together & self.keywords.keys()
        if not taken:
            self.keywords.update(group)
            self.places.update(dict.fromkeys(group, here))
        elif any(self.places[name].schema is not here.schema for name in taken):
            self.others.append(Node(here.document, here.pointer, dict(group)))


def _groups(schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    left = {
        name: value
        for name, value in schema.items()
        if name not in _ANNOTATIONS and name not in ("$ref", "allOf") and not name.startswith("x-")
    }
    for names in _TOGETHER:
        if found := {name: left.pop(name) for name in names if name in left}:
            yield dict(sorted(found.items()))
    for name, value in left.items():
        yield {name: value}
