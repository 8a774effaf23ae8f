"""What a type is made of, read when the service starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from decimal import Decimal
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


def decimal_fields(annotation: Any) -> list[str] | None:
    """The names on the wire of all decimals that values of a type may hold, where all are fields of pydantic models.

    ``None`` where one stands elsewhere: in a list, in a mapping, beside other types.
    """
    if Decimal in _parts(annotation):
        return None
    names: set[str] = set()
    for kind in types_within(annotation):
        if dataclasses.is_dataclass(kind) or is_typeddict(kind):
            return None
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            for name, field in kind.model_fields.items():
                if field.annotation in (Decimal, Decimal | None):
                    aliases = (field.alias, field.validation_alias)
                    if not all(one is None or isinstance(one, str) for one in aliases):
                        return None
                    names.update((name, *(str(one) for one in aliases if one is not None)))
                elif Decimal in _parts(field.annotation):
                    return None
    return sorted(names)


def _parts(annotation: Any) -> list[Any]:
    """What a type is written with, models not opened."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return []
    return [annotation, *(part for inner in (*get_args(annotation), *_fields(annotation)) for part in _parts(inner))]
