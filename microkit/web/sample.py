"""Schemas for a person to read: their names, their limits, and a value that would fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

Part = Mapping[str, Any]

_DEEPEST: Final = 5
_BY_FORMAT: Final = {
    "uuid": "6f1c0d1e-9a3b-4c55-8c2a-5d0f4b1e7a90",
    "date-time": "2026-01-31T12:00:00Z",
    "date": "2026-01-31",
    "time": "12:00:00",
    "duration": "PT30S",
    "email": "ada@example.com",
    "uri": "https://example.com",
    "password": "…",
}
_LIMITS: Final = {
    "minimum": "at least {}",
    "exclusiveMinimum": "more than {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "less than {}",
    "minLength": "{} characters or more",
    "maxLength": "{} characters or fewer",
    "minItems": "{} items or more",
    "maxItems": "{} items or fewer",
    "pattern": "pattern {}",
    "default": "default {}",
}


class Schemas:
    """The schemas of one document, looked up by reference."""

    def __init__(self, document: Part) -> None:
        self._named: Part = document.get("components", {}).get("schemas", {})

    def resolved(self, schema: Part) -> Part:
        """The schema itself, behind references and beside ``null``."""
        for _ in range(_DEEPEST):
            if "$ref" in schema:
                schema = self._named.get(_name(schema), {})
            elif (choice := _only_choice(schema)) is not None:
                schema = {**{key: value for key, value in schema.items() if key != "anyOf"}, **choice}
            else:
                break
        return schema

    def inner(self, schema: Part) -> tuple[Part, str]:
        """What a field holds: of a list its items, with the mark ``[]``."""
        whole = self.resolved(schema)
        return (self.resolved(whole["items"]), "[]") if "items" in whole else (whole, "")

    def constraints(self, schema: Part) -> list[str]:
        """The limits in words."""
        whole = self.resolved(schema)
        found = [text.format(whole[name]) for name, text in _LIMITS.items() if whole.get(name) is not None]
        if whole.get("minLength") == 1:
            found[found.index(_LIMITS["minLength"].format(1))] = "not empty"
        if "enum" in whole:
            found.append("one of " + ", ".join(str(one) for one in whole["enum"]))
        return found


def type_of(schema: Part, schemas: Schemas) -> str:
    """A type in a word or two: ``uuid``, ``list of Bill``, ``integer or null``."""
    if "$ref" in schema:
        return str(schemas.resolved(schema).get("title") or _name(schema))
    if "anyOf" in schema or "oneOf" in schema:
        kinds = dict.fromkeys(type_of(one, schemas) for one in schema.get("anyOf") or schema["oneOf"])
        return " or ".join(kinds)
    if schema.get("type") == "array":
        return f"list of {type_of(schema.get('items', {}), schemas)}"
    if "const" in schema:
        return repr(schema["const"])
    kind = schema.get("format") or schema.get("type") or "anything"
    return str(kind)


def sample(schema: Part, schemas: Schemas, depth: int = 0) -> Any:
    """A value that shows the schema's shape."""
    whole = schemas.resolved(schema)
    for given in (whole.get("examples"), whole.get("enum")):
        if given:
            return given[0]
    for name in ("example", "const", "default"):
        if whole.get(name) is not None:
            return whole[name]
    if depth > _DEEPEST:
        return None
    if {"number", "string"} <= {one.get("type") for one in whole.get("anyOf", ())}:
        return "12.50"  # a decimal, sent as a string so that nothing is lost
    for choices in ("anyOf", "oneOf", "allOf"):
        if choices in whole:
            return sample(_best(whole[choices]), schemas, depth + 1)
    return _by_type(whole, schemas, depth)


def _by_type(whole: Part, schemas: Schemas, depth: int) -> Any:
    kind = whole.get("type")
    if isinstance(kind, list):
        kind = next((one for one in kind if one != "null"), "null")
    if "properties" in whole:
        return {name: sample(one, schemas, depth + 1) for name, one in whole["properties"].items()}
    if kind == "array":
        return [sample(whole["items"], schemas, depth + 1)] if "items" in whole else []
    if kind == "string":
        return _text(whole)
    if kind in {"integer", "number"}:
        low = whole.get("minimum", whole.get("exclusiveMinimum"))
        return 1 if low is None or low < 1 else low + 1
    return {"boolean": True, "object": {}}.get(str(kind))


def _text(whole: Part) -> str:
    if (form := whole.get("format")) in _BY_FORMAT:
        return _BY_FORMAT[str(form)]
    return "…"


def _best(choices: list[Part]) -> Part:
    return next((one for one in choices if one.get("type") != "null"), choices[0])


def _only_choice(schema: Part) -> Part | None:
    choices = [one for one in schema.get("anyOf", ()) if one.get("type") != "null"]
    return choices[0] if len(choices) == 1 else None


def _name(schema: Part) -> str:
    return str(schema["$ref"]).rpartition("/")[2]
