"""Reading what stands behind the ``?`` of a discovery URL."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import SplitResult, parse_qsl

from pydantic import TypeAdapter, ValidationError

from microkit.errors import ConfigurationError
from microkit.settings.quantities import Duration

_DURATION: Final[TypeAdapter[float]] = TypeAdapter(Duration)


def duration(text: str) -> float:
    """``500ms``, ``10s``, ``5m``, ``1h`` in seconds."""
    try:
        return _DURATION.validate_python(text)
    except ValidationError:
        raise ValueError("is no duration such as 10s") from None


def whole(text: str) -> int:
    """A number from 1 on."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise ValueError("is no number")
    return int(text)


def query(parts: SplitResult, readers: Mapping[str, Callable[[str], Any]]) -> dict[str, Any]:
    """The named values; a name that is given several times has a list.

    Raises:
        ConfigurationError: an unknown name, or a value that cannot be read.
    """
    found: dict[str, Any] = {}
    for name, text in parse_qsl(parts.query, keep_blank_values=True):
        reader = readers.get(name)
        if reader is None:
            raise ConfigurationError(
                f"discovery_url: {name!r} is unknown in {parts.scheme}://; it may be one of {', '.join(readers)}"
            )
        try:
            value = reader(text)
        except ValueError as wrong:
            raise ConfigurationError(f"discovery_url: {name}={text[:80]} {wrong}") from None
        found[name] = [*found.get(name, ()), *value] if isinstance(value, list) else value
    return found
