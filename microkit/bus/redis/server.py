"""The connection: commands and scripts, and the client's errors as the port has them."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, AuthorizationError, NoScriptError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from microkit.bus.redis.options import RedisOptions
from microkit.bus.redis.scripts import Script
from microkit.errors import ConfigurationError

_log = logging.getLogger(__name__)

_begun_in: ContextVar[int | None] = ContextVar("begun in", default=None)
"""How many other servers had been met when a command began."""

OLDEST: Final = (7, 0)
PATIENCE: Final = 5.0
"""Seconds for the server to answer; what blocks in it blocks for less."""
AWAY: Final = (
    "ACL failure", "BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "MISCONF", "NOAUTH", "NOPERM", "NOREPLICAS", "OOM",
    "READONLY",
)  # fmt: skip
"""How errors begin that say nothing against a message: the server will have none just now."""


def is_away(error: str) -> bool:
    return error.removeprefix("ERR ").startswith(AWAY)


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
        # A password with characters that a URL keeps for itself ends up in the wrong part of it, and so in the error.
        why = (
            error if isinstance(error, TypeError) or "unexpected" in str(error) else "it is no URL that redis-py takes"
        )
        raise ConfigurationError(
            f"bus_url: {why}; write redis://user:password@redis:6379/0, with what is special in the password "
            "percent-encoded"
        ) from None
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
        self._run = b""
        self._runs = 0
        self.on_restart: set[Callable[[], None]] = set()
        """Called when the connection leads to another server than before: restarted, or a replica in its place. It may
        have forgotten some of what was confirmed, and give the numbers of what it forgot to other messages."""
        self._greeting = client.connection_pool.connection_kwargs.get("redis_connect_func")
        client.connection_pool.connection_kwargs["redis_connect_func"] = self._greet
        self._streams: dict[str, list[str]] = {}

    # Names.

    def stream(self, topic: str, partition: int) -> str:
        return f"{self.options.prefix}:{topic}:{partition}"

    def owners(self, topic: str, group: str) -> str:
        return f"{self.options.prefix}:{topic}:owners:{group}"

    def members(self, topic: str, group: str) -> str:
        return f"{self.options.prefix}:{topic}:members:{group}"

    async def streams(self, topic: str) -> list[str]:
        """The streams of a topic, whose number is settled by whoever uses it first, for good."""
        found = self._streams.get(topic)
        if found is None:
            topics = f"{self.options.prefix}:topics"
            await self.command("HSETNX", topics, topic, self.options.partitions)
            number = int(await self.command("HGET", topics, topic))
            found = self._streams[topic] = [self.stream(topic, partition) for partition in range(number)]
        return found

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
            raise ConfigurationError(
                f"bus_url: the server is version {version}; Redis 7 or Valkey is needed: upgrade it, or name another"
            )
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

    async def _greet(self, connection: Any) -> None:
        """Begins a connection as redis-py does, or as its client was told to, and asks which server that is."""
        if self._greeting is None:
            await connection.on_connect()
        elif inspect.isawaitable(begun := self._greeting(connection)):
            await begun
        await connection.send_command("INFO", "server", check_health=False)
        try:
            info: bytes = await connection.read_response()
        except ResponseError:  # this user may not ask
            return
        before, self._run = self._run, next((line for line in info.splitlines() if line.startswith(b"run_id:")), b"")
        if before and self._run != before:
            self._runs += 1
            _log.warning("redis: the server is another one than before; what is in flight will come again")
            for restarted in tuple(self.on_restart):
                restarted()
        if _begun_in.get() not in (None, self._runs):  # what this connection is made for was meant for the other one
            raise RedisConnectionError("the server is another one than before")

    async def _execute(self, *words: Any) -> Any:
        return await self._client.execute_command(*words)  # type: ignore[no-untyped-call]

    @contextmanager
    def _forgetting(self) -> Iterator[None]:
        """A server that comes back may be another, with other topics."""
        token = _begun_in.set(self._runs)
        try:
            yield
        except BaseException:
            self._streams.clear()
            raise
        finally:
            _begun_in.reset(token)


def _as_it_is(reply: Any, **_: Any) -> Any:
    return reply


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (AuthenticationError, AuthorizationError) as error:
        raise ConnectionError(f"redis: {str(error).rstrip('.')}; see the user and the password in bus_url") from error
    except (RedisConnectionError, RedisTimeoutError, OSError) as error:
        raise ConnectionError(f"redis: {error}" if str(error) else f"redis: no answer within {PATIENCE:g} s") from error
    except RedisError as error:
        # redis-py cuts the code off some of the texts, and keeps it beside them.
        if is_away(str(error)) or is_away(getattr(error, "status_code", None) or ""):
            raise ConnectionError(f"redis: {error}") from error
        raise
