"""Where an instance has its place that is one of several workers on one port."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Placement:
    """``listener`` is the socket on which all of them accept, and ``admin`` the one on which this one's admin endpoints
    are asked for; both listen already. Whoever placed it makes it known to a registry.

    ``metrics`` gives the text of all workers' metrics together. ``last_words`` is given this one's own at its end, so
    that nothing that it counted is lost. ``ready`` says whether one of them is ready: who asks on the port means all.
    """

    number: int
    listener: socket.socket
    admin: socket.socket
    metrics: Callable[[], Awaitable[bytes]]
    last_words: Callable[[bytes], Awaitable[None]]
    ready: Callable[[], Awaitable[bool]]
