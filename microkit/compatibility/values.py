"""Which values a schema can have: their types, all of them where they are few, and whether two have any in common."""

from __future__ import annotations

from collections.abc import Iterable
from json import dumps
from typing import Any, Final

from microkit.compatibility.schema import Shape

TYPES: Final = ("null", "boolean", "number", "string", "array", "object")
UNIONS: Final = ("anyOf", "oneOf")
_FEW: Final[dict[str, list[Any]]] = {"null": [None], "boolean": [False, True]}
_DEEP: Final = 4


def types_of(shape: Shape) -> tuple[str, ...]:
    found = shape.keywords.get("type", TYPES)
    return (found,) if isinstance(found, str) else tuple(found)


def takes(reader: Shape, kind: str) -> bool:
    taken = types_of(reader)
    return kind in taken or (kind == "integer" and "number" in taken)


def few_values(shape: Shape) -> list[Any] | None:
    """All values that fit, where they are few."""
    if "const" in shape.keywords:
        return [shape.keywords["const"]]
    if "enum" in shape.keywords:
        return list(shape.keywords["enum"])
    kinds = types_of(shape)
    return [value for kind in kinds for value in _FEW[kind]] if all(kind in _FEW for kind in kinds) else None


def kind_of(value: Any) -> str:
    """The type of a value."""
    if value is None:
        return "null"
    for python, kind in ((bool, "boolean"), (int, "integer"), (float, "number"), (str, "string"), (list, "array")):
        if isinstance(value, python):
            return "integer" if isinstance(value, float) and value.is_integer() else kind
    return "object"


def same(one: Any, other: Any) -> bool:
    """JSON's equality: 1 is 1.0 and is not true."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    return bool(one == other)


def listed(values: Iterable[Any]) -> str:
    return ", ".join(dumps(value, ensure_ascii=False) for value in values)


def described(shape: Shape) -> str:
    """What fits, for a sentence."""
    values = few_values(shape)
    return listed(values) if values is not None else " or ".join(types_of(shape))


def apart(one: Shape, other: Shape, depth: int = 0) -> bool:
    """Whether surely no value fits both."""
    if one.nothing or other.nothing:
        return True
    if depth > _DEEP:
        return False
    for these, those in ((one, other), (other, one)):
        for union in UNIONS:
            if union in these.keywords:
                branches = [these.plus(branch, instead_of=union) for branch in these.parts(union)]
                return all(apart(branch, those, depth + 1) for branch in branches)
    mine, theirs = few_values(one), few_values(other)
    if mine is not None and theirs is not None:
        return not any(same(value, another) for value in mine for another in theirs)
    if not _kinds(one, mine) & _kinds(other, theirs):
        return True
    return types_of(one) == types_of(other) == ("object",) and _told_apart(one, other, depth)


def _kinds(shape: Shape, values: list[Any] | None) -> set[str]:
    found = {kind_of(value) for value in values} if values is not None else set(types_of(shape))
    return {"number" if kind == "integer" else kind for kind in found}


def _told_apart(one: Shape, other: Shape, depth: int) -> bool:
    """By a field that all values of one have and whose values differ: the tag of a union."""
    fields = one.keywords.get("properties", {}).keys() & other.keywords.get("properties", {}).keys()
    always = {*one.keywords.get("required", ()), *other.keywords.get("required", ())}
    return any(
        apart(Shape.of(one.part("properties", name)), Shape.of(other.part("properties", name)), depth + 1)
        for name in fields & always
    )
