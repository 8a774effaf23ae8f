"""``memory://``: the instances of one process register themselves when they listen."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Sequence

from microkit.discovery.changes import Changes, Latest
from microkit.discovery.port import Endpoint, Standing
from microkit.errors import Unavailable


class MemoryRegistry:
    """A registrar, resolver and watcher for the services of one process.

    It is the truth itself and no copy of it: there is nothing to be stale, and where nobody is registered nobody is.
    """

    def __init__(self) -> None:
        self._services: defaultdict[str, Latest] = defaultdict(Latest)

    async def register(self, service: str, endpoint: Endpoint) -> None:
        latest = self._services[service]
        latest.set([*(known for known in latest.endpoints if known.id != endpoint.id), endpoint])

    async def deregister(self, service: str, endpoint: Endpoint) -> None:
        """Takes the instance out again. One that is not there is no error: stopping twice must not fail."""
        latest = self._services[service]
        latest.set(known for known in latest.endpoints if known.id != endpoint.id)

    async def resolve(self, service: str) -> Sequence[Endpoint]:
        latest = self._services.get(service)
        if latest is None or not latest.endpoints:
            known = ", ".join(sorted(name for name, found in self._services.items() if found.endpoints)) or "none"
            raise Unavailable(f"No instance of {service!r} is registered. Registered are: {known}")
        return latest.endpoints

    def watch(self, service: str) -> AsyncIterator[Sequence[Endpoint]]:
        return Changes(self._services[service])

    def standings(self) -> Sequence[Standing]:
        return [Standing(service, len(latest.endpoints)) for service, latest in sorted(self._services.items())]

    async def close(self) -> None:
        """Nothing: whoever made the registry for several instances keeps it."""
