"""The consumer runtime: the same above every bus.

Order within a topic and key, concurrency across keys, bounded in-flight, retry with backoff and full jitter that parks
the failing key only, batches that fall apart into single messages, dead letters, acknowledgement after success, drain
on stop; and a loop that crashes is begun anew, some times.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Final

from microkit.bus.dead_letter import Bury
from microkit.bus.group import GroupRunner, Limits
from microkit.bus.port import Bus, ShowsLag
from microkit.bus.subscription import Batching, GroupProgress, Subscription
from microkit.errors import DefinitionError, MicrokitError
from microkit.message import Message
from microkit.telemetry import Telemetry

__all__ = ["Batching", "ConsumerFailed", "ConsumerRuntime", "GroupProgress", "Limits", "Subscription"]

LAG_SECONDS: Final = 15.0
"""How often the bus is asked how far the groups are behind."""


class ConsumerFailed(MicrokitError):
    """A group crashed again and again. Messages pile up until the process is started anew."""


class ConsumerRuntime:
    """Runs the subscriptions of one service.

    ``limits`` bound each group: behind the keys that it works on or has ready, up to 16 times as many messages may wait
    for an earlier one of their own key. ``bury`` takes dead letters; by default they are published.
    """

    def __init__(
        self,
        bus: Bus,
        telemetry: Telemetry,
        *,
        limits: Limits | None = None,
        bury: Bury | None = None,
        lag_every: float = LAG_SECONDS,
    ) -> None:
        self.failed = asyncio.Event()
        """Set when a group has used up its crash budget; :attr:`failure` says why."""
        self.failure: ConsumerFailed | None = None
        self._bus = bus
        self._telemetry = telemetry
        self._limits = limits or Limits()
        self._bury = bury or self._publish
        self._lag_every = lag_every
        self._lag: asyncio.Task[None] | None = None
        self._runners: dict[str, GroupRunner] = {}
        self._topics: dict[str, tuple[str, ...]] = {}

    def add(self, subscription: Subscription) -> None:
        """Adds a group, and declares it on the bus so that messages wait for it from now on."""
        group = subscription.group
        if group in self._runners:
            raise DefinitionError(f"the group {group!r} is subscribed twice")
        self._bus.declare(group, subscription.topics)
        self._topics[group] = subscription.topics
        self._runners[group] = GroupRunner(
            subscription, self._bus, self._telemetry, self._limits, self._bury, self._give_up
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
        if isinstance(self._bus, ShowsLag):
            self._lag = asyncio.create_task(self._watch_lag(self._bus), name="consumer lag")

    async def stop(self, timeout: float) -> None:  # noqa: ASYNC109  how long to drain, not a failure
        """Stops fetching, lets running handlers finish for ``timeout`` seconds, cancels the rest, gives back what is
        not done, acknowledges what is, and leaves the groups."""
        lag, self._lag = self._lag, None
        if lag is not None:
            lag.cancel()
            await asyncio.gather(lag, return_exceptions=True)
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
                restarts=runner.restarts,
            )
            for name, runner in self._runners.items()
        ]

    def _give_up(self, group: str, error: BaseException) -> None:
        self.failure = ConsumerFailed(f"the group {group} crashed too often; the last time by {error!r}")
        self.failed.set()

    async def _watch_lag(self, bus: ShowsLag) -> None:
        while True:
            for group, runner in self._runners.items():
                waiting: Counter[str] = Counter()
                try:
                    for part in await bus.lag(group, self._topics[group]):
                        waiting[part.topic] += part.waiting
                except OSError:  # the broker is away: the groups say so
                    continue
                except Exception:  # the next look may work; a lag that stands still for ever would mislead
                    self._telemetry.logger.exception("the lag of the group %s is not known", group)
                    continue
                for topic, number in waiting.items():
                    runner.metrics.lag(topic, number)
            await asyncio.sleep(self._lag_every)

    async def _publish(self, message: Message) -> None:
        await self._bus.publish([message])
