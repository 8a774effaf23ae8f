"""The JSON Schemas of events, in the form that AsyncAPI takes: draft 7 with references into the components."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from pydantic.json_schema import models_json_schema

from microkit.message import Event

Document = dict[str, Any]

_REFERENCE: Final = "#/components/schemas/"
_WRITTEN, _READ = "-Output", "-Input"
_NAMED: Final = ("properties", "patternProperties", "dependentSchemas")
_LISTED: Final = ("allOf", "anyOf", "oneOf", "prefixItems")
_SINGLE: Final = (
    *("items", "additionalProperties", "propertyNames", "contains", "not", "if", "then", "else"),
    *("unevaluatedItems", "unevaluatedProperties", "contentSchema"),
)


class EventSchemas:
    """What events are written as and what is read of them, where that is more.

    An ``Amount`` may be written as a string and read from a number as well. What is written keeps the model's name,
    what is read gets ``.read`` behind it.
    """

    def __init__(self, events: Sequence[type[Event]]) -> None:
        pairs = [(event, mode) for event in events for mode in ("serialization", "validation")]
        found, shared = models_json_schema(pairs, ref_template=_REFERENCE + "{model}")  # type: ignore[arg-type]  # list of a narrower pair
        definitions: Document = shared.get("$defs", {})
        self._names = {name: _renamed(name, definitions) for name in definitions}
        self.components = {
            self._names[name]: _converted(schema, self._reference) for name, schema in sorted(definitions.items())
        }
        self._found = {key: _converted(schema, self._reference) for key, schema in found.items()}

    def written(self, event: type[Event]) -> Document:
        found: Document = self._found[event, "serialization"]
        return found

    def read(self, event: type[Event]) -> Document | None:
        """``None`` where that is what is written."""
        found = self._found[event, "validation"]
        return None if found == self.written(event) else found

    def _reference(self, reference: str) -> str:
        return _REFERENCE + self._names[reference.removeprefix(_REFERENCE)]


def _renamed(name: str, all_names: Mapping[str, Any]) -> str:
    for ending, instead in ((_WRITTEN, ""), (_READ, ".read")):
        short = name.removesuffix(ending)
        if short != name and short not in all_names and f"{short}{_WRITTEN}" in all_names:
            return short + instead
    return name


def _converted(schema: Any, reference: Callable[[str], str]) -> Any:
    """One schema and all within it, from draft 2020-12 to draft 7."""
    if not isinstance(schema, dict):
        return schema
    found = dict(schema)
    for name in _NAMED:
        if name in found:
            found[name] = {key: _converted(part, reference) for key, part in found[name].items()}
    for name in _LISTED:
        if name in found:
            found[name] = [_converted(part, reference) for part in found[name]]
    for name in _SINGLE:
        if name in found:
            found[name] = _converted(found[name], reference)
    _as_draft_7(found)
    if "$ref" in found:
        link = {"$ref": reference(found.pop("$ref"))}
        found = {"allOf": [link], **found} if found else link  # draft 7 ignores what stands beside a $ref
    return found


def _as_draft_7(schema: Document) -> None:
    schema.pop("discriminator", None)  # pydantic's is OpenAPI's; AsyncAPI's is another
    if "prefixItems" in schema:
        following = schema.pop("items", None)
        schema["items"] = schema.pop("prefixItems")
        if following is not None:
            schema["additionalItems"] = following
