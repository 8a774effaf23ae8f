"""What a system is drilled with: requests that leave something behind, and how to see afterwards that it is there."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One request. ``body`` is sent as JSON; ``None`` is none."""

    method: str
    path: str
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is there after the drill: effects and events, of those requests that were answered with success. Texts name
    the first few of each."""

    lost: Collection[str] = ()
    duplicated: Collection[str] = ()
    events_lost: Collection[str] = ()


class Door(Protocol):
    """How a load reaches the system."""

    async def send(self, outgoing: Outgoing) -> tuple[int, Any]:
        """Status and body of one request, sent once."""
        ...

    async def events(self, topic: str) -> list[Mapping[str, Any]]:
        """The messages that the bus still has of a topic, each with its ``key`` and ``event_type``, oldest first."""
        ...


class Load(Protocol):
    """The load of one system. Made anew for each drill."""

    async def prepare(self, door: Door) -> None:
        """Makes what the requests need, such as accounts."""
        ...

    def request(self, number: int) -> Outgoing:
        """Request number so many, from 0. One that changes something has an effect of its own."""
        ...

    def answered(self, number: int, body: Any) -> None:
        """Told of each request that was answered with success."""
        ...

    async def verify(self, door: Door, acknowledged: Collection[int]) -> Verdict:
        """Looks for the effects and events of the requests that were ``acknowledged``."""
        ...
