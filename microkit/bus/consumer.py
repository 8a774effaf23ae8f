"""The consumer runtime: the same above every bus.

Order within a topic and key, concurrency across keys, bounded in-flight, retry with backoff and full jitter that parks
the failing key only, dead letters, acknowledgement after success, drain on stop.
"""

from __future__ import annotations

import asyncio

from microkit.bus.dead_letter import Bury
from microkit.bus.group import GroupRunner
from microkit.bus.port import Bus
from microkit.bus.subscription import GroupProgress, Subscription
from microkit.errors import DefinitionError
from microkit.message import Message
from microkit.telemetry import Telemetry

__all__ = ["ConsumerRuntime", "GroupProgress", "Subscription"]


class ConsumerRuntime:
    """Runs the subscriptions of one service.

    ``max_in_flight`` bounds the keys that a group works on or has ready at once; behind them, up to 16 times as many
    messages may wait for an earlier one of their own key. ``bury`` takes dead letters; by default they are published.
    """

    def __init__(self, bus: Bus, telemetry: Telemetry, *, max_in_flight: int = 256, bury: Bury | None = None) -> None:
        self._bus = bus
        self._telemetry = telemetry
        self._max_in_flight = max_in_flight
        self._bury = bury or self._publish
        self._runners: dict[str, GroupRunner] = {}

    def add(self, subscription: Subscription) -> None:
        """Adds a group, and declares it on the bus so that messages wait for it from now on."""
        if subscription.group in self._runners:
            raise DefinitionError(f"the group {subscription.group!r} is subscribed twice")
        self._bus.declare(subscription.group, subscription.topics)
        self._runners[subscription.group] = GroupRunner(
            subscription, self._bus, self._telemetry, self._max_in_flight, self._bury
        )

    async def start(self) -> None:
        """Joins all groups and begins to fetch.

        Raises:
            ConnectionError: the bus cannot be reached; what was started is stopped again.
        """
        try:
            for runner in self._runners.values():
                await runner.start()
        except BaseException:
            await self.stop(0)
            raise

    async def stop(self, timeout: float) -> None:  # noqa: ASYNC109  how long to drain, not a failure
        """Stops fetching, lets running handlers finish for ``timeout`` seconds, cancels the rest, gives back what is
        not done, acknowledges what is, and leaves the groups."""
        await asyncio.gather(*(runner.stop(timeout) for runner in self._runners.values()))

    def progress(self) -> list[GroupProgress]:
        """How each group gets on."""
        return [
            GroupProgress(
                group=name,
                in_flight=runner.held,
                retrying=runner.retrying,
                quiet_for=runner.quiet_for,
                stalled=runner.stalled,
                trouble=runner.trouble,
            )
            for name, runner in self._runners.items()
        ]

    async def _publish(self, message: Message) -> None:
        await self._bus.publish([message])
