"""The discovery port: where the instances of a service are."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One instance of a service.

    ``url`` is the base URL under which it listens, without a path. ``id`` tells it from the service's other instances
    and outlives a restart at the same place; where nobody names it, it is the URL. ``zone`` is where it runs, empty
    when nobody says. ``weight`` is its share of the calls beside the others', 0 and more: with 0 it takes none while
    others can.
    """

    url: str
    id: str = ""
    zone: str = ""
    tags: tuple[str, ...] = ()
    weight: int = 1

    def __post_init__(self) -> None:
        if not self.id:
            object.__setattr__(self, "id", self.url)


class Resolver(Protocol):
    """Finds the instances of a service. Safe to ask at every call: a known service is answered from memory."""

    async def resolve(self, service: str) -> Sequence[Endpoint]:
        """All known instances, at least one.

        The very same tuple is returned as long as nothing changed, so that a balancer sees by ``is`` that it need not
        look again. Cancelling it harms nobody else who waits.

        Raises:
            Unavailable: the service is not known, has no instance, or what is known is too old to be believed.
        """
        ...


@runtime_checkable
class Watcher(Protocol):
    """Tells when the instances of a service change, for those who do not want to ask at every call."""

    def watch(self, service: str) -> AsyncIterator[Sequence[Endpoint]]:
        """What is known now, then what is known after each change, without an end. The tuple is empty while no
        instance is known.

        Only the newest state is told: a slow reader misses what was overtaken, and never makes anybody wait. Nothing
        has to be closed: a reader that goes away is forgotten.
        """
        ...


@runtime_checkable
class Registrar(Protocol):
    """Makes an instance known: after its server listens, until before it stops."""

    async def register(self, service: str, endpoint: Endpoint) -> None:
        """Makes the instance known to others, and keeps it known: where the registry forgets it (it was restarted, or
        missed its heartbeats), it is registered again until :meth:`deregister`. One with the same id is replaced.

        It returns as soon as the registry has taken it, or after a first attempt that failed: a registry that is away
        keeps no service from starting, and the attempts go on.
        """
        ...

    async def deregister(self, service: str, endpoint: Endpoint) -> None:
        """Takes it out again; one that is not there is no error, and neither is a registry that is away: there the
        instance ends by itself, when its heartbeats stay out."""
        ...


@dataclass(frozen=True, slots=True)
class Standing:
    """How well the instances of one service are known.

    ``stale_for`` are the seconds since the registry last confirmed them, while it is away or answers that there are
    none; 0 while they are fresh. ``trouble`` is why they are stale, in words, else empty. ``expired`` is true when they
    are too old to be believed, and calls fail.
    """

    service: str
    instances: int
    stale_for: float = 0.0
    trouble: str = ""
    expired: bool = False


class Discovery(Resolver, Watcher, Protocol):
    """What a ``discovery_url`` names. One that others can be made known to is a :class:`Registrar` as well."""

    def standings(self) -> Sequence[Standing]:
        """Of each service that was asked for, by name."""
        ...

    async def close(self) -> None:
        """Ends what it does in the background. A second time it does nothing."""
        ...
