"""What the suites of the bus port have in common."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, ClassVar, TypeVar

import pytest

from microkit.bus.port import Bus, Delivery, Promises, ShowsLag
from microkit.message import Message

Need = str | type[Any]

Scenario = TypeVar("Scenario", bound=Callable[..., Any])


def needs(*these: Need) -> Callable[[Scenario], Scenario]:
    """Marks a scenario that only an adapter with these promises and abilities can show."""

    def mark(scenario: Scenario) -> Scenario:
        scenario.needs = these  # type: ignore[attr-defined]  # functions take attributes
        return scenario

    return mark


class BusScenarios:
    """What the suites have in common."""

    promises: ClassVar[Promises]
    SCALE: ClassVar[int] = 1
    JOINING: ClassVar[float] = 0.2
    """Seconds that a new member may need until it gets messages."""
    excused: ClassVar[Mapping[str, str]] = {}
    """Names of scenarios that cannot be held here, and why."""
    url: str | None = None
    """What ``microkit.bus.connect`` takes to the same broker, for scenarios with other processes."""

    scenario = ""
    """The one that is being held."""

    @pytest.fixture(autouse=True)
    def _excuse(self, request: pytest.FixtureRequest) -> None:
        self.scenario = request.node.originalname
        if reason := self.why_not(self.scenario):
            pytest.skip(reason)

    @pytest.fixture(autouse=True)
    def bus_round(self, request: pytest.FixtureRequest) -> int:
        """Which of the rounds this is that ``--bus-stress`` asks for."""
        return getattr(request, "param", 0)

    async def connect(self) -> Bus:
        """A new connection, not started."""
        raise NotImplementedError

    @asynccontextmanager
    async def bus(self) -> AsyncIterator[Bus]:
        bus = await self.connect()
        if reason := self.why_not(self.scenario, bus):
            pytest.skip(reason)
        await bus.start()
        try:
            yield bus
        finally:
            await bus.close()

    def why_not(self, scenario: str, bus: Bus | None = None) -> str | None:
        """Why a scenario cannot be held here, ``None`` where it can; with ``bus``, its abilities count."""
        if reason := self.excused.get(scenario):
            return reason
        for need in getattr(getattr(type(self), scenario, None), "needs", ()):
            if isinstance(need, str):
                if not getattr(self.promises, need):
                    return f"this adapter does not promise {need!r}"
            elif bus is not None and not isinstance(bus, need):
                return f"this adapter is none that {need.__name__}"
        return None

    async def _publish(self, bus: Bus, messages: Sequence[Message], batch: int) -> None:
        for start in range(0, len(messages), batch):
            await bus.publish(messages[start : start + batch])

    async def _trickle(self, bus: Bus, messages: Sequence[Message]) -> None:
        for start in range(0, len(messages), 5):
            await bus.publish(messages[start : start + 5])
            await asyncio.sleep(0)

    async def _steadily(self, bus: Bus, messages: Sequence[Message], seconds: float) -> None:
        for start in range(0, len(messages), 10):
            await bus.publish(messages[start : start + 10])
            await asyncio.sleep(seconds * 10 / len(messages))

    async def _lag(self, bus: ShowsLag, group: str, topic: str) -> int:
        return sum(each.waiting for each in await bus.lag(group, [topic]) if (each.group, each.topic) == (group, topic))

    def _check_order(self, deliveries: Sequence[Delivery]) -> None:
        """The first coming of each message of a key is in the order of publishing."""
        if not self.promises.ordered:
            return
        lanes: dict[str, list[int]] = defaultdict(list)
        for delivery in deliveries:
            number = int(delivery.message.id)
            if number not in lanes[delivery.message.key]:
                lanes[delivery.message.key].append(number)
        for key, lane in lanes.items():
            assert lane == sorted(lane), f"the messages of key {key!r} came as {lane}"
