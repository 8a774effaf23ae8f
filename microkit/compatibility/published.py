"""The events that an AsyncAPI 3 document declares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from microkit.compatibility.schema import Node
from microkit.errors import ConfigurationError

EXTENSION = "x-microkit"
"""On a message: ``version``, ``key``, ``upcasts`` and ``reads``, the schema of what a consumer takes."""


@dataclass(frozen=True, slots=True)
class Published:
    """One event as a document has it. ``name`` is its CloudEvents type."""

    name: str
    title: str
    topic: str
    node: Node
    version: int = 1
    key: str | None = None
    upcasts: frozenset[int] = frozenset()

    def schemas(self) -> list[Node]:
        """What is written, and what a consumer takes, where the document says so."""
        found = [self.node.child("payload")] if "payload" in self.node.schema else []
        more = self.node.schema.get(EXTENSION, {})
        return [*found, self.node.child(EXTENSION, "reads")] if "reads" in more else found


def published(document: Any, name: str) -> dict[str, Published]:
    """All events of a document, by name. ``name`` is what errors call the document.

    Raises:
        ConfigurationError: it is no AsyncAPI 3 document, or one that leads nowhere.
    """
    told = document.get("asyncapi") if isinstance(document, Mapping) else None
    if not (isinstance(told, str) and told.startswith("3.")):
        raise ConfigurationError(f"{name} is no AsyncAPI 3 document; `microkit asyncapi` writes one")
    root = Node(document, "", document)
    found: dict[str, Published] = {}
    try:
        for identifier in document.get("channels", {}):
            here = _followed(root.child("channels", identifier))
            topic = here.schema.get("address") or identifier
            for key in here.schema.get("messages", {}):
                event = _event(_followed(here.child("messages", key)), key, topic)
                found[event.name] = event
    except (AttributeError, TypeError, KeyError, ValueError) as error:
        raise ConfigurationError(f"{name} is a broken AsyncAPI document: {type(error).__name__}: {error}") from None
    return found


def _event(node: Node, key: str, topic: str) -> Published:
    more = node.schema.get(EXTENSION, {})
    name = str(node.schema.get("name") or key)
    return Published(
        name=name,
        title=name.rpartition(".")[2],
        topic=topic,
        node=node,
        version=int(more.get("version", 1)),
        key=more.get("key"),
        upcasts=frozenset(map(int, more.get("upcasts", ()))),
    )


def _followed(node: Node) -> Node:
    seen: set[str] = set()
    while "$ref" in node.schema:
        if node.pointer in seen:
            raise ConfigurationError(f"{node.pointer}: the reference {node.schema['$ref']!r} leads to itself")
        seen.add(node.pointer)
        node = node.target(node.schema["$ref"])
    return node
