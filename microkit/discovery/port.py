"""The discovery port: where the instances of a service are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One instance: the base URL under which it listens, without a path."""

    url: str


class Resolver(Protocol):
    """Finds the instances of a service."""

    async def resolve(self, service: str) -> Sequence[Endpoint]:
        """All known instances, at least one.

        Raises:
            Unavailable: the service is not known, or has no instance.
        """
        ...


@runtime_checkable
class Registrar(Protocol):
    """Makes an instance known: after its server listens, until before it stops."""

    async def register(self, service: str, endpoint: Endpoint) -> None:
        """Makes the instance known to others."""
        ...

    async def deregister(self, service: str, endpoint: Endpoint) -> None:
        """Takes it out again; one that is not there is no error."""
        ...
