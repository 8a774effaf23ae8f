"""``memory://``: the instances of one process register themselves when they listen."""

from __future__ import annotations

from collections.abc import Sequence

from microkit.discovery.port import Endpoint
from microkit.errors import Unavailable


class MemoryRegistry:
    """A registrar and resolver for the services of one process."""

    def __init__(self) -> None:
        self._endpoints: dict[str, list[Endpoint]] = {}

    async def register(self, service: str, endpoint: Endpoint) -> None:
        self._endpoints[service] = [*self._endpoints.get(service, ()), endpoint]

    async def deregister(self, service: str, endpoint: Endpoint) -> None:
        """Takes the instance out again. One that is not there is no error: stopping twice must not fail."""
        self._endpoints[service] = [known for known in self._endpoints.get(service, ()) if known != endpoint]

    async def resolve(self, service: str) -> Sequence[Endpoint]:
        endpoints = self._endpoints.get(service)
        if not endpoints:
            known = ", ".join(sorted(name for name, found in self._endpoints.items() if found)) or "none"
            raise Unavailable(f"No instance of {service!r} is registered. Registered are: {known}")
        return endpoints
