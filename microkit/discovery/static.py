"""``static://``: the instances are written in the settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from microkit.discovery.port import Endpoint
from microkit.errors import Unavailable


class StaticResolver:
    """Resolves from a fixed table of service names and base URLs."""

    def __init__(self, urls: Mapping[str, Sequence[str]]) -> None:
        self._endpoints = {service: [Endpoint(url.rstrip("/")) for url in found] for service, found in urls.items()}

    async def resolve(self, service: str) -> Sequence[Endpoint]:
        endpoints = self._endpoints.get(service)
        if not endpoints:
            known = ", ".join(sorted(self._endpoints)) or "none"
            raise Unavailable(f"No instance of {service!r} is known. In the settings there are: {known}")
        return endpoints
