"""What a proxy in front of a system must know, whatever it is: the routes of a gateway without its filters' code.

An :class:`Edge` is made once (:mod:`microkit.gateway.rendering.reading`), and each format writes it down its own way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from microkit.gateway.filters import Cors, RedirectToCdn
from microkit.gateway.route import Route

By = Literal["user", "address", "everybody"]


@dataclass(frozen=True, slots=True)
class EdgeUpstream:
    """The instances of a service: ``(host:port, weight)`` each, all of them with ``scheme``."""

    name: str
    scheme: Literal["http", "https"]
    servers: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class EdgeLimit:
    """A token bucket: ``burst`` tokens, ``per_minute`` new ones a minute. Routes with the same ``name`` share it."""

    name: str
    by: By
    per_minute: float
    burst: int


@dataclass(frozen=True, slots=True)
class EdgeCompression:
    least: int
    level: int
    types: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EdgeRoute:
    """A route, with what its filters come to.

    Where ``because`` is not empty the proxy cannot do all of it: it sends the request on to the gateway itself, as it
    came, and ``because`` says for what. ``strips`` are prefixes that are taken off one after the other. ``timeout`` and
    ``idle_timeout`` are in seconds, ``body_limit`` in bytes. ``retries`` are how often a safe request may be sent in
    all, and after which statuses.
    """

    id: str
    route: Route
    because: tuple[str, ...] = ()
    strips: tuple[str, ...] = ()
    timeout: float = 30.0
    idle_timeout: float | None = None
    body_limit: int = 0
    limits: tuple[EdgeLimit, ...] = ()
    request_headers: Mapping[str, str] = field(default_factory=dict)
    request_removed: tuple[str, ...] = ()
    response_headers: Mapping[str, str] = field(default_factory=dict)
    response_removed: tuple[str, ...] = ()
    cors: Cors | None = None
    cdn: RedirectToCdn | None = None
    compression: EdgeCompression | None = None
    retries: tuple[int, tuple[int, ...]] = (1, ())

    @property
    def through_gateway(self) -> bool:
        return bool(self.because)


@dataclass(frozen=True, slots=True)
class Edge:
    """All of it.

    ``gateway`` is the service that has the routes: it is asked who calls, and gets what the proxy cannot do.
    ``own_paths`` are the paths (templates, as ``/api/items/{id}``) that it answers itself. ``passed_headers`` are the
    names of the request headers that go on to services: what is not among them ends at the proxy. ``notes`` are
    sentences for whoever runs it: where it does otherwise than the gateway would.
    """

    title: str
    gateway: str
    routes: tuple[EdgeRoute, ...]
    upstreams: Mapping[str, EdgeUpstream]
    own_paths: tuple[str, ...]
    hosts: tuple[str, ...]
    trusted_proxies: tuple[str, ...]
    passed_headers: tuple[str, ...]
    own_timeout: float
    own_body_limit: int
    tokens: bool
    notes: tuple[str, ...] = ()
