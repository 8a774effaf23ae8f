"""Configurations of other proxies, written from a gateway's routes."""

from microkit.gateway.rendering.edge import Edge, EdgeLimit, EdgeRoute, EdgeUpstream
from microkit.gateway.rendering.formats import FORMATS, Format, rendered
from microkit.gateway.rendering.placement import Placement
from microkit.gateway.rendering.reading import Surroundings, read

__all__ = [
    "FORMATS",
    "Edge",
    "EdgeLimit",
    "EdgeRoute",
    "EdgeUpstream",
    "Format",
    "Placement",
    "Surroundings",
    "read",
    "rendered",
]
