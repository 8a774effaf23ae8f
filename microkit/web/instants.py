"""Instants that are within the years 1 to 9999 where they were written, and outside of them in UTC.

Python holds ``9999-12-31T23:59:59-12:00``, and nothing can be done with it: a comparison, a conversion to UTC and both
databases' drivers fail.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime
from typing import Any, Final

from pydantic import BaseModel, RootModel

DETAIL: Final = "Input should be a time within the years 1 to 9999 in UTC"

_Location = tuple[str | int, ...]

# Only the first and the last day (and the one beside it, for good measure) can leave the calendar.
_LAST, _FIRST = b"9999-12-3", b"0001-01-0"
# What a date is made of, written as an escape.
_ESCAPE: Final = re.compile(rb"\\u00(2[dD]|3[0-9])")


def suspicious(body: bytes) -> bool:
    """Whether JSON may hold such an instant. It costs nothing, and is true of many a harmless text."""
    if b"\\u00" in body:
        body = _ESCAPE.sub(_unescaped, body)
    return _LAST in body or _FIRST in body


def suspicious_text(text: str) -> bool:
    """As :func:`suspicious`, for one value of a path, query or header."""
    return "9999-12-3" in text or "0001-01-0" in text


def off_the_calendar(value: Any) -> list[_Location]:
    """Where in a validated value such instants stand, by the names that the sender wrote."""
    return list(_within(value, ()))


def _within(value: Any, where: _Location) -> Iterator[_Location]:
    if isinstance(value, datetime):
        if _leaves(value):
            yield where
    elif not isinstance(value, (str, bytes, bytearray)):
        for step, inner in _parts(value):
            yield from _within(inner, where + step)


def _parts(value: Any) -> Iterable[tuple[_Location, Any]]:
    """What a value is made of, each with the steps that lead to it."""
    match value:
        case RootModel():
            return [((), value.root)]
        case BaseModel():
            fields = {**value.__dict__, **(value.__pydantic_extra__ or {})}
            return [((_written(type(value), name),), inner) for name, inner in fields.items()]
        case Mapping():
            return [*(((), key) for key in value), *(((str(key),), inner) for key, inner in value.items())]
        case Sequence() | AbstractSet():
            return [((index,), inner) for index, inner in enumerate(value)]
        case _ if dataclasses.is_dataclass(value):
            return [((field.name,), getattr(value, field.name, None)) for field in dataclasses.fields(value)]
    return ()


def _written(model: type[BaseModel], name: str) -> str:
    field = model.model_fields.get(name)
    if field is None:
        return name
    return next((alias for alias in (field.validation_alias, field.alias) if isinstance(alias, str)), name)


def _leaves(instant: datetime) -> bool:
    if instant.tzinfo is None:
        return False
    try:
        instant.astimezone(UTC)
    except OverflowError:
        return True
    return False


def _unescaped(escape: re.Match[bytes]) -> bytes:
    return chr(int(escape[1], 16)).encode()
