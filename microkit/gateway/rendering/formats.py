"""The formats that an edge can be written in. Another one is a function and a line here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from microkit.errors import ConfigurationError
from microkit.gateway.rendering.edge import Edge
from microkit.gateway.rendering.nginx import render as _nginx
from microkit.gateway.rendering.placement import Placement

Format = Callable[[Edge, Placement], str]

FORMATS: Final[dict[str, Format]] = {"nginx": _nginx}


def rendered(format: str, edge: Edge, placement: Placement) -> str:  # noqa: A002  what it is called everywhere
    """The configuration.

    Raises:
        ConfigurationError: there is no such format, or it cannot say what the edge demands.
    """
    write = FORMATS.get(format)
    if write is None:
        raise ConfigurationError(
            f"{format!r} is no format that routes can be rendered in; there is {', '.join(FORMATS)}"
        )
    return write(edge, placement)
