"""What a type is made of, read when the service starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, get_args, is_typeddict

from pydantic import BaseModel


def types_within(annotation: Any) -> list[Any]:
    """The type itself and all types that its values may hold: arguments, fields, fields of fields."""
    return list(_within(annotation, {}))


def _within(annotation: Any, seen: dict[int, Any]) -> Iterator[Any]:
    if id(annotation) in seen:
        return
    seen[id(annotation)] = annotation  # kept, so that its id stays its own
    yield annotation
    for inner in (*get_args(annotation), *_fields(annotation)):
        yield from _within(inner, seen)


def _fields(annotation: Any) -> list[Any]:
    if hasattr(annotation, "__value__"):  # type Amount = …
        return [annotation.__value__]
    if hasattr(annotation, "__supertype__"):  # NewType
        return [annotation.__supertype__]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [field.annotation for field in annotation.model_fields.values()]
    if dataclasses.is_dataclass(annotation) or is_typeddict(annotation):
        return list(getattr(annotation, "__annotations__", {}).values())
    return []
