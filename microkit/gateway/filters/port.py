"""What a filter is: data that says what to do, and that makes the piece of code which does it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, ClassVar

from microkit.gateway.exchange import Answer, Exchange, Handler
from microkit.telemetry import Telemetry


class Phase(IntEnum):
    """Where in the chain a filter stands, the outermost first. Within a phase: as written, the gateway's before the
    route's. So that no order of writing puts a cache before the token check."""

    EDGE = 1
    """What every answer gets, a refusal too: CORS, compression, headers."""
    DOOR = 2
    """Before it is known who calls: limits by address, redirects."""
    IDENTITY = 3
    """Who calls, and whether they may."""
    ADMISSION = 4
    """Limits by user or key."""
    CACHE = 5
    REWRITE = 6
    """Paths, headers and bodies for the service, and of its answer."""
    UPSTREAM = 7
    """Around the call itself: fallback, breaker, time-out, retry."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What filters are given when a gateway is bound. ``route`` names the route in metrics, and ``title`` tells it from
    others of the same path.

    ``setting`` gives a value of the service's settings by name; ``send`` asks a service as the gateway itself does.
    """

    route: str
    title: str
    telemetry: Telemetry
    setting: Callable[[str], Any]
    shared: dict[object, Any]
    """Kept for the life of the bound gateway, also when its routes are replaced: stores, limiters, connections."""
    send: Callable[[Exchange], Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class Filter:
    """One thing to do with requests on their way. A frozen dataclass whose fields are plain data, so that routes can be
    written in a file. Make your own by subclassing it, with a ``kind`` of its own and :meth:`around`."""

    kind: ClassVar[str] = ""
    phase: ClassVar[Phase] = Phase.REWRITE

    def around(self, inner: Handler, tools: Tools) -> Handler:
        """The handler that does this filter's part and lets ``inner`` do the rest.

        Raises:
            ConfigurationError: something it needs is not set.
        """
        raise NotImplementedError
