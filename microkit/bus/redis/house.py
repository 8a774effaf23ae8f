"""Which partitions a member of a group has: taken up to a fair share, kept by heartbeats, drained and given back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final
from uuid import uuid4

from microkit.bus.redis.scripts import BALANCE, RELEASE, TRIM
from microkit.bus.redis.server import Server
from microkit.bus.redis.tenure import Tenure
from microkit.bus.redis.wire import number_of

_log = logging.getLogger(__name__)

HUNGRY: Final = 0.25
"""Seconds between looks at the group while something is to be taken or given."""
LONGEST_PAUSE: Final = 2.0
LONGEST_DRAIN: Final = 35.0
"""Seconds that a partition has to drain, more than the time-out of a handler that has begun (30). Then it goes, if what
was not begun with has been let go of; else it is read again, because a key that is retried must not stop the others."""
GRACE: Final = 2.0


class House:
    """Keeps the tenures of one member. ``losses`` are messages found to be gone, as text and number."""

    def __init__(
        self,
        server: Server,
        group: str,
        topics: Sequence[str],
        create: Callable[[str, str], Awaitable[list[int]]],
        wake: asyncio.Event,
        revoke: Callable[[Tenure], bool],
    ) -> None:
        self.tenures: list[Tenure] = []
        self.losses: deque[tuple[str, int | None]] = deque()
        self._server = server
        self._group = group
        self._topics = topics
        self._create = create
        self._wake = wake
        self._revoke = revoke
        self._member = uuid4().hex
        self._heartbeat = server.options.lease / 3
        self._look = asyncio.Event()
        self._hungry = False
        self._left = False
        self._take_from = 0.0
        self._undrained: dict[Tenure, float] = {}
        self._seen: dict[tuple[str, int], int] = {}
        self._told: set[tuple[str, int]] = set()
        self._keeping: asyncio.Task[None] | None = None

    async def join(self) -> None:
        self._server.on_restart.add(self._restarted)
        for topic in self._topics:
            await self._make(topic)
            await self._balance(topic)
        self._keeping = asyncio.create_task(self._keep(), name=f"partitions of {self._group}")

    async def leave(self) -> None:
        self._left = True
        self._server.on_restart.discard(self._restarted)
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        tenures = list(self.tenures)
        for tenure in tenures:
            self._end(tenure)
        with contextlib.suppress(ConnectionError, TimeoutError):  # then the lease runs out
            async with asyncio.timeout(GRACE):
                for topic in self._topics:
                    await self._release(topic, [each for each in tenures if each.topic == topic], leave=True)

    def look(self) -> None:
        """Looks at the group now instead of at the next heartbeat, where something is to be given."""
        if any(tenure.draining_since is not None for tenure in self.tenures):
            self._look.set()

    def drop(self, tenure: Tenure, why: str) -> None:
        """Ends a tenure that is over."""
        if tenure.alive:
            self._end(tenure)
            self._revoke(tenure)
            _log.warning("group %s lost partition %d of %s: %s", self._group, tenure.partition, tenure.topic, why)
            self._look.set()

    def _restarted(self) -> None:
        """Takes everything anew. What is in the caller's hands may be all that is left of it, so it stays there; but
        its numbers may be other messages' now, so nothing of it is acknowledged any more."""
        for tenure in self.tenures:
            self._end(tenure)
        self._look.set()
        self._wake.set()

    def _end(self, tenure: Tenure) -> None:
        tenure.alive = False
        self.tenures = [each for each in self.tenures if each is not tenure]
        self._seen[tenure.topic, tenure.partition] = tenure.read

    def gone(self, tenure: Tenure, what: str) -> None:
        """Ends a tenure whose stream was deleted or began anew, and notes the loss."""
        name = (tenure.topic, tenure.partition)
        self.lose(f"partition {tenure.partition} of {tenure.topic} {what}", None)
        self.drop(tenure, f"it {what}")
        self._told.add(name)
        self._seen.pop(name, None)

    def lose(self, what: str, lost: int | None) -> None:
        """Notes that messages are lost, to be told by the next fetch."""
        _log.error("group %s lost messages: %s", self._group, what)
        self.losses.append((what, lost))
        self._wake.set()

    # The loop.

    async def _keep(self) -> None:
        failures, trimmed_at = 0, 0.0
        while not self._left:
            pause = HUNGRY if self._hungry else self._heartbeat
            if failures:
                pause = random.uniform(0.05, min(LONGEST_PAUSE, self._heartbeat, 0.1 * 2**failures))  # noqa: S311
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(pause, self._heartbeat)):
                    await self._look.wait()
                    await asyncio.sleep(0.01)  # several at once
            self._look.clear()
            try:
                self._hungry = False
                for topic in self._topics:
                    await self._balance(topic)
                if time.monotonic() - trimmed_at >= self._heartbeat:
                    await self._trim()
                    trimmed_at = time.monotonic()
            except Exception as error:  # noqa: BLE001  whatever the client raises, the heartbeat goes on
                if not failures:
                    _log.warning("group %s cannot keep its partitions: %r", self._group, error)
                failures = min(failures + 1, 10)
                # All leases ran out while the server was away: who comes back first leaves the others theirs.
                self._take_from = time.monotonic() + self._heartbeat
                continue
            failures = 0

    # Partitions.

    async def _balance(self, topic: str) -> None:
        mine = [tenure for tenure in self.tenures if tenure.topic == topic]
        streams = await self._server.streams(topic)
        owners, members = self._server.owners(topic, self._group), self._server.members(topic, self._group)
        may_take = time.monotonic() >= self._take_from
        arguments: list[Any] = [self._group, self._member, int(self._server.options.lease * 1000), int(may_take)]
        for tenure in mine:
            arguments += (tenure.partition, tenure.token)
        share, lost, taken = await self._server.run(BALANCE, [owners, members, *streams], arguments)
        for tenure in mine:
            if tenure.partition in lost:
                self.drop(tenure, "its lease ran out")
        make = False
        for partition, token, last in taken:
            make = make or not last
            if last:
                self._begin(Tenure(topic, partition, token.decode(), streams[partition], owners), number_of(last))
        if make:  # gone with the stream; what was taken on it is taken anew
            await self._make(topic)
            self._look.set()
        await self._give(topic, share)

    async def _make(self, topic: str) -> None:
        for partition in await self._create(self._group, topic):
            self._seen.pop((topic, partition), None)
            if (topic, partition) not in self._told:
                self.lose(f"partition {partition} of {topic} was deleted", None)
            self._told.discard((topic, partition))

    def _begin(self, tenure: Tenure, delivered: int) -> None:
        if delivered < self._seen.get((tenure.topic, tenure.partition), 0):
            self.lose(f"partition {tenure.partition} of {tenure.topic} began anew", None)
        self.tenures.append(tenure)
        self._wake.set()

    async def _give(self, topic: str, share: int) -> None:
        """Drains what is above the share, and gives back what is drained."""
        mine = [tenure for tenure in self.tenures if tenure.topic == topic]
        now = time.monotonic()
        draining = [tenure for tenure in mine if tenure.draining_since is not None]
        for tenure in draining:
            late = now - (tenure.draining_since or now) > LONGEST_DRAIN
            if not tenure.revoked and (late or len(mine) <= share):
                tenure.draining_since = None
                self._undrained[tenure] = now
                self._wake.set()
        self._undrained = {
            each: since for each, since in self._undrained.items() if each.alive and now - since < LONGEST_DRAIN
        }
        draining = [tenure for tenure in draining if tenure.draining_since is not None]
        candidates = [each for each in mine if each.draining_since is None and each not in self._undrained]
        candidates.sort(key=lambda tenure: len(tenure.held) + tenure.buffered)
        for tenure in candidates[: max(0, len(mine) - share - len(draining))]:
            tenure.draining_since = now
            tenure.revoked = self._revoke(tenure)
            draining.append(tenure)
        done = [
            tenure
            for tenure in draining
            if tenure.idle or (tenure.revoked and now - (tenure.draining_since or now) > LONGEST_DRAIN)
        ]
        for tenure in done:
            self._end(tenure)
        if done:
            await self._release(topic, done)
        self._hungry = self._hungry or len(mine) != share

    async def _release(self, topic: str, tenures: Sequence[Tenure], *, leave: bool = False) -> None:
        arguments: list[Any] = [self._member, int(leave)]
        for tenure in tenures:
            arguments += (tenure.partition, tenure.token)
        owners, members = self._server.owners(topic, self._group), self._server.members(topic, self._group)
        await self._server.run(RELEASE, [owners, members], arguments)

    async def _trim(self) -> None:
        mine = list(self.tenures)
        if not mine:
            return
        reply = await self._server.run(
            TRIM, [tenure.stream for tenure in mine], [self._group, self._server.options.keep]
        )
        for tenure, lost in zip(mine, reply, strict=True):
            if lost:
                self.lose(f"{lost} messages of {tenure.stream} were deleted unread", lost)
                tenure.read += lost
