"""The connection: commands and scripts, and the client's errors as the port has them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from microkit.bus.redis.options import RedisOptions
from microkit.bus.redis.scripts import Script
from microkit.errors import ConfigurationError

_log = logging.getLogger(__name__)

OLDEST: Final = (7, 0)
PATIENCE: Final = 5.0
"""Seconds for the server to answer; what blocks in it blocks for less."""
AWAY: Final = (
    "BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "MISCONF", "NOAUTH", "NOPERM", "NOREPLICAS", "OOM", "READONLY",
)  # fmt: skip
"""How errors begin that say nothing against a message: the server will have none just now."""


def is_away(error: str) -> bool:
    return error.startswith(AWAY)


def client_of(url: str) -> Redis:
    """redis-py's client for a URL. It never repeats a command by itself: whether that is right only its caller knows.

    Raises:
        ConfigurationError: redis-py does not understand the URL.
    """
    try:
        # redis-py allows 100 connections; a member that waits, reads and acknowledges has three.
        # Its socket_timeout is off, since it would be an asyncio.wait_for, which until Python 3.12 may swallow a
        # cancellation; the time is kept here.
        client: Redis = Redis.from_url(
            url, retry=Retry(NoBackoff(), 0), protocol=2, max_connections=10_000, socket_timeout=None
        )
        # An unknown parameter shows when the first connection is made.
        client.connection_pool.make_connection()  # type: ignore[no-untyped-call]
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"bus_url: {error}; write redis://:password@redis:6379/0") from None
    return client


class Server:
    """One Redis or Valkey server, and the names of the keys in it."""

    def __init__(self, client: Redis, options: RedisOptions) -> None:
        self.options = options
        self.open = False
        if client.get_encoder().decode_responses:  # type: ignore[no-untyped-call]
            raise ConfigurationError("bus_url: messages are bytes; leave decode_responses off")
        for command in ("XRANGE", "XREAD", "XREADGROUP", "XREVRANGE"):
            client.set_response_callback(command, _as_it_is)  # type: ignore[arg-type]
        self._client = client
        self._partitions: dict[str, int] = {}

    # Names.

    def stream(self, topic: str, partition: int) -> str:
        return f"{self.options.prefix}:{topic}:{partition}"

    def owners(self, topic: str, group: str) -> str:
        return f"{self.options.prefix}:{topic}:owners:{group}"

    def members(self, topic: str, group: str) -> str:
        return f"{self.options.prefix}:{topic}:members:{group}"

    async def streams(self, topic: str) -> list[str]:
        """The streams of a topic, whose number is settled by whoever uses it first, for good."""
        number = self._partitions.get(topic)
        if number is None:
            topics = f"{self.options.prefix}:topics"
            await self.command("HSETNX", topics, topic, self.options.partitions)
            number = self._partitions[topic] = int(await self.command("HGET", topics, topic))
        return [self.stream(topic, partition) for partition in range(number)]

    async def topics(self) -> dict[str, list[str]]:
        """All topics that have been used, by name, and the streams of each."""
        found = await self.command("HGETALL", f"{self.options.prefix}:topics")
        pairs = found.items() if isinstance(found, dict) else zip(found[::2], found[1::2], strict=True)
        return {
            name: [self.stream(name, partition) for partition in range(int(number))]
            for name, number in sorted((name.decode(), number) for name, number in pairs)
        }

    # Talking.

    async def start(self) -> None:
        """Connects, and looks whether what is confirmed here lasts.

        Raises:
            ConfigurationError: the server is too old.
        """
        self.open = True
        await self.command("PING")
        with _translated():
            try:
                info: dict[str, Any] = await self._client.info()
            except ResponseError:  # this user may not ask
                return
        version = str(info.get("valkey_version") or info.get("redis_version", ""))
        if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < OLDEST:
            raise ConfigurationError(f"bus_url: the server is version {version}; Redis 7 or Valkey is needed")
        if not info.get("aof_enabled"):
            _log.warning("redis: appendonly is off, so confirmed messages are lost when the server ends")
        if str(info.get("maxmemory_policy", "noeviction")).startswith("allkeys"):
            _log.warning("redis: maxmemory-policy %s may evict messages; use noeviction", info["maxmemory_policy"])

    async def close(self) -> None:
        self.open = False
        await self._client.aclose()

    def check_open(self) -> None:
        if not self.open:
            raise ConnectionError("the redis bus is closed")

    async def command(self, *words: Any) -> Any:
        """One command.

        Raises:
            ConnectionError: the server is away, does not answer in time, or takes nothing now.
        """
        self.check_open()
        with self._forgetting(), _translated():
            async with asyncio.timeout(PATIENCE):
                return await self._execute(*words)

    async def run(self, script: Script, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        """One script; see :mod:`microkit.bus.redis.scripts`.

        Raises:
            ConnectionError: as for :meth:`command`.
        """
        self.check_open()
        with self._forgetting(), _translated():
            async with asyncio.timeout(PATIENCE):
                try:
                    return await self._execute("EVALSHA", script.sha, len(keys), *keys, *arguments)
                except NoScriptError:  # the first time, and after the server was restarted
                    return await self._execute("EVAL", script.text, len(keys), *keys, *arguments)

    async def together(self, *commands: Sequence[Any]) -> list[Any]:
        """Commands that nobody else's come between; an error among the replies is that command's.

        Raises:
            ConnectionError: as for :meth:`command`.
        """
        self.check_open()
        with self._forgetting(), _translated():
            pipeline = self._client.pipeline(transaction=True)
            for words in commands:
                pipeline.execute_command(*words)
            async with asyncio.timeout(PATIENCE):
                replies: list[Any] = await pipeline.execute(raise_on_error=False)
        return replies

    async def _execute(self, *words: Any) -> Any:
        return await self._client.execute_command(*words)  # type: ignore[no-untyped-call]

    @contextmanager
    def _forgetting(self) -> Iterator[None]:
        """A server that comes back may be another, with other topics."""
        try:
            yield
        except BaseException:
            self._partitions.clear()
            raise


def _as_it_is(reply: Any, **_: Any) -> Any:
    return reply


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (RedisConnectionError, RedisTimeoutError, OSError) as error:
        raise ConnectionError(f"redis: {error}" if str(error) else f"redis: no answer within {PATIENCE:g} s") from error
    except RedisError as error:
        if is_away(str(error)):
            raise ConnectionError(f"redis: {error}") from error
        raise
