"""The gateway: one address in front of the services of a system."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from microkit.client.upstream import Upstream
from microkit.discovery.port import Resolver
from microkit.errors import ConfigurationError
from microkit.gateway.bound import BoundGateway
from microkit.gateway.caching.store import CacheStore
from microkit.gateway.filters.port import Filter
from microkit.gateway.identity import Verify
from microkit.gateway.route import Route
from microkit.gateway.table import RouteTable
from microkit.resilience.rate import MemoryRateLimiter, RateLimiter
from microkit.telemetry import Telemetry

BODY_LIMIT = 10 * 1024 * 1024
"""Bytes of a request's body where neither the gateway nor the route says otherwise: uploads pass through here."""


class Gateway:
    """The routes of a gateway. It holds no connections: a service binds it when it starts.

    ``filters`` are for all routes, before each route's own. ``title`` heads the merged OpenAPI document; ``body_limit``
    (bytes) bounds what a client may send.

    Raises:
        DefinitionError: a request could take two routes, or none could ever take one.
    """

    def __init__(
        self,
        routes: Sequence[Route],
        *,
        filters: Sequence[Filter] = (),
        title: str = "API",
        body_limit: int = BODY_LIMIT,
    ) -> None:
        self.routes = tuple(routes)
        self.filters = tuple(filters)
        self.title = title
        self.body_limit = body_limit
        self.table = RouteTable(self.routes)

    @property
    def services(self) -> tuple[str, ...]:
        """The services behind it, each once, in the order of the routes."""
        return tuple(dict.fromkeys(route.service for route in self.routes))

    async def bind(  # noqa: PLR0913  what a composition root hands over, each by its name
        self,
        *,
        telemetry: Telemetry,
        verify: Verify | None,
        resolver: Resolver,
        trusted_proxies: Sequence[str] = (),
        limiter: RateLimiter | None = None,
        cache: CacheStore | None = None,
        setting: Callable[[str], Any] | None = None,
        upstream: Callable[[str], Upstream] | None = None,
        own: Callable[[], Mapping[str, Any]] | None = None,
    ) -> BoundGateway:
        """An ASGI app. It raises :class:`~microkit.errors.Problem`, for the web floor to render. Close it when its
        server has stopped.

        ``limiter`` counts for rate limits and ``cache`` keeps answers; without them each is done in memory. ``setting``
        gives the value of a setting by its name. ``upstream`` gives the instances of a service as the typed client
        knows them, so that what is learnt in one place holds for both; without it they are found by ``resolver`` and
        guarded as is usual. ``own`` is the OpenAPI document of what the service answers itself.

        Raises:
            ConfigurationError: a route asks for roles and there is nothing to verify tokens with, or a filter misses a
                setting.
        """
        bound = BoundGateway(
            self,
            telemetry=telemetry,
            verify=verify,
            upstream=upstream or (lambda service: Upstream(service, resolver=resolver, telemetry=telemetry)),
            trusted_proxies=trusted_proxies,
            shared={RateLimiter: limiter or MemoryRateLimiter()} | ({CacheStore: cache} if cache is not None else {}),
            setting=setting or _no_setting,
            own=own,
        )
        bound.replace(self.routes)
        return bound


def _no_setting(name: str) -> object:
    raise ConfigurationError(f"{name} is no setting: there are none where the gateway is bound by hand")
