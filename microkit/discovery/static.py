"""``static://``: the instances are written in the settings."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence

from microkit.discovery.changes import Changes, Latest
from microkit.discovery.port import Endpoint, Standing
from microkit.errors import Unavailable


class StaticResolver:
    """Resolves from a fixed table of service names and base URLs. Nobody registers: whoever wrote the table did."""

    def __init__(self, urls: Mapping[str, Sequence[str]]) -> None:
        self._services = {
            service: Latest(dict.fromkeys(Endpoint(url.rstrip("/")) for url in listed))
            for service, listed in urls.items()
        }

    async def resolve(self, service: str) -> Sequence[Endpoint]:
        latest = self._services.get(service)
        if latest is None or not latest.endpoints:
            known = ", ".join(sorted(self._services)) or "none"
            raise Unavailable(f"No instance of {service!r} is known. In the settings there are: {known}")
        return latest.endpoints

    def watch(self, service: str) -> AsyncIterator[Sequence[Endpoint]]:
        return Changes(self._services.get(service) or Latest())

    def standings(self) -> Sequence[Standing]:
        return [Standing(service, len(latest.endpoints)) for service, latest in sorted(self._services.items())]

    async def close(self) -> None:
        """Nothing."""
