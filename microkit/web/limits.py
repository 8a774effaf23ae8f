"""What a request may cost before it is refused."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes in bytes, times in seconds.

    ``body``, ``depth``, ``headers``, ``header_count`` and ``url`` are enforced while reading; what exceeds them is
    answered with 413, 400, 431, 431 and 414. ``timeout`` is how long a request may take, unless its operation says
    otherwise or the caller sends a shorter ``Request-Timeout-Ms``. ``header_timeout`` is how long the head of a request
    may take, ``keep_alive`` how long an idle connection stays open: longer than the callers' pools keep theirs (aiohttp
    15 s, nginx 60 s), so that it is never the server that closes a connection about to be used.
    ``connections`` is how many may be open at once; those beyond are answered 503 and closed.
    ``concurrency`` is how many requests are worked on at once at most, ``queue`` how long one may wait for its turn in
    a burst: with ``shedding`` both shrink under overload (see :mod:`microkit.resilience.shed`), without it neither
    holds.
    ``allowed_hosts`` are names without a port; ``"*"`` takes any, ``"*.example.com"`` the names below.
    """

    body: int = 1024 * 1024
    depth: int = 32
    headers: int = 16 * 1024
    header_count: int = 100
    url: int = 8 * 1024
    timeout: float = 10.0
    header_timeout: float = 10.0
    keep_alive: float = 75.0
    connections: int = 10_000
    concurrency: int = 1000
    queue: float = 1.0
    shedding: bool = True
    allowed_hosts: tuple[str, ...] = ("*",)
