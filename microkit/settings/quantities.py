"""Amounts that people write with a unit: durations and sizes."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import timedelta
from typing import Annotated, Any, Final

from pydantic import BeforeValidator

_SECONDS: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES: Final = {
    "": 1,
    "b": 1,
    **{f"{letter}b": 1000**power for power, letter in enumerate("kmgt", 1)},
    **{f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", 1)},
}
_PART = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)\s*(us|ms|s|m|h|d)", re.ASCII)
_PLAIN = re.compile(r"\d{1,15}(?:\.\d{1,9})?", re.ASCII)
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)\s*([a-z]*)", re.ASCII | re.IGNORECASE)


def seconds(value: Any) -> float:
    """``"250ms"``, ``"30s"``, ``"1h30m"``, a number of seconds or a timedelta, in seconds.

    Raises:
        ValueError: it is none of these, negative, infinite or not a number.
    """
    if isinstance(value, timedelta):
        amount = value.total_seconds()
    elif isinstance(value, int | float) and not isinstance(value, bool):
        amount = float(value)
    elif isinstance(value, str):
        amount = _written(value.strip())
    else:
        raise ValueError("a duration is a number with a unit: 250ms, 30s, 5m, 2h")  # noqa: TRY004  what pydantic reports
    if not math.isfinite(amount) or amount < 0:
        raise ValueError("a duration is finite and not negative: 250ms, 30s, 5m, 2h")
    return amount


def _written(text: str) -> float:
    if _PLAIN.fullmatch(text):
        return float(text)
    parts = list(_PART.finditer(text))
    if not parts or "".join(part[0] for part in parts) != text:
        raise ValueError("a duration is a number with a unit: 250ms, 30s, 5m, 2h")
    return sum(float(part[1]) * _SECONDS[part[2]] for part in parts)


def size(value: Any) -> int:
    """``"1MiB"``, ``"64KiB"``, ``"10MB"`` or a number of bytes, in bytes.

    Raises:
        ValueError: it is none of these, negative, or no whole number of bytes.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        amount: float = value
    elif isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())) and match[2].lower() in _BYTES:
        amount = float(match[1]) * _BYTES[match[2].lower()]
    else:
        raise ValueError("a size is a number with a unit: 64KiB, 1MiB, 10MB")
    if amount < 0 or amount != int(amount):
        raise ValueError("a size is a whole number of bytes and not negative: 64KiB, 1MiB, 10MB")
    return int(amount)


def in_units(value: Any, rules: Sequence[Any]) -> str | None:
    """A duration or size as people write it, told by the field's ``rules``; ``None`` where it is neither."""
    validators = {rule.func for rule in rules if isinstance(rule, BeforeValidator)}
    if seconds in validators and isinstance(value, float):
        for unit, scale in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1), ("ms", 1e-3)):
            if value >= scale and (value / scale).is_integer():
                return f"{value / scale:.0f}{unit}"
        return f"{value:.9f}".rstrip("0").rstrip(".") + "s" if math.isfinite(value) else str(value)
    if size in validators and isinstance(value, int):
        for unit, scale in (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
            if value and value % scale == 0:
                return f"{value // scale}{unit}"
        return str(value)
    return None


Duration = Annotated[float, BeforeValidator(seconds)]
"""Seconds, as a float. Written ``250ms``, ``30s``, ``5m``, ``2h``, ``1h30m``, or as a number of seconds."""

Size = Annotated[int, BeforeValidator(size)]
"""Bytes. Written ``64KiB``, ``1MiB``, ``10MB``, or as a number of bytes."""
