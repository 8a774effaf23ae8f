"""Kept answers in Redis or Valkey, shared by all instances of a gateway."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from hashlib import sha256
from math import ceil
from typing import Any, Final

from microkit.errors import ConfigurationError, MissingExtra
from microkit.gateway.caching.entry import Entry
from microkit.gateway.caching.store import varied_key

try:
    from redis.asyncio import Redis
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff
    from redis.exceptions import RedisError
except ImportError as error:
    if error.name == "redis":
        raise MissingExtra("cache_url=redis://", "redis") from error
    raise

PATIENCE: Final = 0.1
"""Seconds: a cache that takes longer is no help."""

PAUSE: Final = 1.0

_log = logging.getLogger(__name__)


class RedisStore:
    """A hash for each URL: the names it varies by, and its entries. It expires with the entry that lasts longest; how
    much is kept beyond that is the server's ``maxmemory`` (``allkeys-lru``).

    Raises:
        ConfigurationError: redis-py does not understand the URL.
    """

    def __init__(self, url: str, *, prefix: str = "microkit:cache:") -> None:
        try:
            self._redis: Any = Redis.from_url(
                url, socket_timeout=PATIENCE, socket_connect_timeout=PATIENCE, retry=Retry(NoBackoff(), 0)
            )
        except (ValueError, RedisError) as error:
            raise ConfigurationError(f"cache_url: {error}; an example: redis://redis:6379/1") from None
        self._prefix = prefix
        self._ask_again = 0.0

    async def find(self, base: str, asked: Mapping[bytes, bytes]) -> Entry | None:
        key = self._key(base)
        vary = await self._try("hget", key, "vary")
        if vary is None:
            return None
        names = [one for one in vary.decode().split(",") if one]
        found = await self._try("hget", key, varied_key(names, asked))
        try:
            return None if found is None else Entry.loads(found)
        except (ValueError, TypeError):
            return None

    async def keep(self, base: str, asked: Mapping[bytes, bytes], vary: Sequence[str], entry: Entry) -> None:
        key, names = self._key(base), ",".join(vary)
        known = await self._try("hget", key, "vary")
        if known is not None and known.decode() != names:
            await self._try("delete", key)
        mapping = {"vary": names, varied_key(vary, asked): entry.dumps()}
        await self._try("hset", key, mapping=mapping)
        # Longer is harmless, as each entry knows its own age; GT leaves a later end as it is, NX sets the first.
        lasts = max(1, ceil(entry.lifetime + entry.grace - entry.age))
        await self._try("expire", key, lasts, nx=True)
        await self._try("expire", key, lasts, gt=True)

    async def drop(self, base: str) -> None:
        await self._try("delete", self._key(base))

    async def close(self) -> None:
        await self._redis.aclose()

    def _key(self, base: str) -> str:
        return self._prefix + sha256(base.encode()).hexdigest()

    async def _try(self, command: str, *arguments: Any, **options: Any) -> Any:
        """The command's answer; ``None`` while the server is away, which is then not asked for a second."""
        if time.monotonic() < self._ask_again:
            return None
        try:
            return await getattr(self._redis, command)(*arguments, **options)
        except (RedisError, OSError, TimeoutError) as error:
            self._ask_again = time.monotonic() + PAUSE
            _log.warning("the cache's store is away, answers are not kept: %s", type(error).__name__)
            return None
