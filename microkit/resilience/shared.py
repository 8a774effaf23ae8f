"""Breakers that the instances of a service share, in Redis or Valkey: what one found out, all know a second later.

pybreaker's own Redis storage asks the server several times in each call, and blocks the event loop meanwhile. Here a
task compares notes once a second, and no call waits for anything: what this process opened is written down, what others
opened is opened here, and when the time of an open breaker is over, by the server's clock, one process of all gets the
lease to probe. While the server is away each breaker goes by its own clock.

One hash holds the open breakers: name → the server's time in milliseconds at which it may be probed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any, Final
from uuid import uuid4

from microkit.errors import ConfigurationError, MissingExtra
from microkit.resilience.breaker import Breaker, BreakerState

try:
    from redis.asyncio import Redis
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff
    from redis.exceptions import RedisError
except ImportError as error:
    if error.name == "redis":
        raise MissingExtra("breaker_state_url=redis://", "redis") from error
    raise

_log = logging.getLogger(__name__)

INTERVAL: Final = 1.0
PATIENCE: Final = 1.0
PROBE_LEASE_MS: Final = 10_000
"""How long one process may take for its probe, before another may."""

_FORGOTTEN_AFTER_S: Final = 3600
_AGAIN: Final = 0.1

Breakers = Callable[[], Iterable[Breaker]]


class SharedBreakers:
    """Keeps ``breakers()``, asked anew each time, in step with those of the same names elsewhere.

    ``group`` is the service that calls: its replicas share, others have experiences of their own. ``reset`` is how long
    a breaker stays open, in seconds; without it, as long as it would by itself.

    Raises:
        ConfigurationError: redis-py does not understand the URL.
        MissingExtra: redis-py is not installed.
    """

    def __init__(
        self, url: str, group: str, breakers: Breakers, *, reset: float | None = None, interval: float = INTERVAL
    ) -> None:
        try:
            self._client: Redis = Redis.from_url(
                url, retry=Retry(NoBackoff(), 0), protocol=2, max_connections=2, decode_responses=True
            )
        except (TypeError, ValueError):
            raise ConfigurationError(
                "breaker_state_url: it is no URL that redis-py takes; write redis://user:password@redis:6379/0"
            ) from None
        self._key = f"microkit:breakers:{group}"
        self._breakers = breakers
        self._reset = reset
        self._interval = interval
        self._owner = uuid4().hex
        self._written: set[str] = set()
        self._probing: set[str] = set()
        self._away = self._stopping = False
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begins to compare; a server that is away keeps nothing from starting."""
        self._stopping = False
        self._task = asyncio.create_task(self._run(), name="shared breakers")

    async def stop(self, timeout: float = 1.0) -> None:  # noqa: ASYNC109  as the other workers'
        """Ends it. What is written down stays for the others."""
        self._stopping = True
        task, self._task = self._task, None
        while task is not None and not task.done():
            task.cancel()  # more than once: redis-py swallows one that comes while it gives a connection up
            await asyncio.wait({task}, timeout=_AGAIN)
        for breaker in self._breakers():
            breaker.lead(False)
        await self._client.aclose()

    async def _run(self) -> None:
        while not self._stopping:
            try:
                async with asyncio.timeout(PATIENCE):
                    await self.compare()
                self._away = False
            except (RedisError, OSError, TimeoutError) as error:
                if not self._away:
                    _log.warning("breakers are not shared for now: %s", error)
                self._away = True
                for breaker in self._breakers():
                    breaker.lead(False)
            await asyncio.sleep(self._interval)

    async def compare(self) -> None:
        """Compares notes once."""
        pipe = self._client.pipeline(transaction=False)
        pipe.time()
        pipe.hgetall(self._key)
        (seconds, micros), noted = await pipe.execute()
        now = int(seconds) * 1000 + int(micros) // 1000
        for breaker in self._breakers():
            breaker.lead(True)
            await self._settle(breaker, noted.get(breaker.name), now)

    async def _settle(self, breaker: Breaker, noted: str | None, now: int) -> None:
        until = int(noted) if noted is not None else None
        if breaker.state is BreakerState.OPEN:
            await self._settle_open(breaker, until, now)
        elif breaker.name in self._probing:
            await self._settle_probe(breaker, until, now)
        elif until is None or breaker.state is BreakerState.HALF_OPEN:
            return
        elif now < until:
            self._written.add(breaker.name)
            breaker.open()
        elif now > until + _FORGOTTEN_AFTER_S * 1000:
            await self._forget(breaker.name)  # whoever wrote it has not come back

    async def _settle_open(self, breaker: Breaker, until: int | None, now: int) -> None:
        name = breaker.name
        if name in self._probing or (until is None and name not in self._written):
            open_for = breaker.reset if self._reset is None else self._reset
            await self._note(name, now + int(open_for * 1000))  # opened here, or its probe failed here
        elif until is None:
            self._written.discard(name)
            breaker.close()  # a probe elsewhere was answered
        elif now >= until and await self._may_probe(name):
            self._probing.add(name)
            breaker.probe_now()

    async def _settle_probe(self, breaker: Breaker, until: int | None, now: int) -> None:
        if breaker.closed:
            await self._forget(breaker.name)
        elif until is None or now < until:  # nobody called here, and another process has probed meanwhile
            self._probing.discard(breaker.name)
            self._written.add(breaker.name)
            breaker.open()

    async def _note(self, name: str, until: int) -> None:
        self._probing.discard(name)
        self._written.add(name)
        pipe = self._client.pipeline(transaction=False)
        pipe.hset(self._key, name, str(until))
        pipe.expire(self._key, 2 * _FORGOTTEN_AFTER_S)
        pipe.delete(self._lease(name))
        await pipe.execute()

    async def _forget(self, name: str) -> None:
        self._probing.discard(name)
        self._written.discard(name)
        pipe = self._client.pipeline(transaction=False)
        pipe.hdel(self._key, name)
        pipe.delete(self._lease(name))
        await pipe.execute()

    async def _may_probe(self, name: str) -> bool:
        taken: Any = await self._client.set(self._lease(name), self._owner, nx=True, px=PROBE_LEASE_MS)
        return bool(taken)

    def _lease(self, name: str) -> str:
        return f"{self._key}:probe:{name}"
