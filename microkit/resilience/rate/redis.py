"""Buckets that all instances share, in Redis or Valkey: one atomic script, on the server's clock."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from hashlib import sha1, sha256
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from microkit.errors import ConfigurationError, MissingExtra
from microkit.resilience.rate.limit import Limit, Verdict, verdict
from microkit.resilience.rate.port import check_cost

try:
    from redis.asyncio import Redis
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff
    from redis.exceptions import NoScriptError, RedisError
except ImportError as error:
    if error.name == "redis":
        raise MissingExtra("rate_limit_url=redis://", "redis") from error
    raise

PATIENCE: Final = 0.25
"""Seconds for the server to answer: less than anybody would wait for a limiter."""

_TOGETHER: Final = 256
_LONGEST_KEY: Final = 200

# KEYS: buckets. ARGV, three for each, in microseconds: what a token takes, what the whole bucket takes, what is asked
# for. Gives two for each: whether it was taken, and how long the bucket now needs to be full.
# A key holds the time at which its bucket is full, and is gone by then. After the server's clock was set back that is
# too far off: it is never more than a whole bucket.
_SCRIPT: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local out = {}
for i = 1, #KEYS do
  local capacity, asked = tonumber(ARGV[3 * i - 1]), tonumber(ARGV[3 * i])
  local ahead = tonumber(redis.call('GET', KEYS[i]) or now) - now
  if ahead < 0 then ahead = 0 end
  if ahead > capacity then ahead = capacity end
  local allowed = ahead + asked <= capacity + 1
  if allowed and asked > 0 then
    ahead = ahead + asked
    redis.call('SET', KEYS[i], string.format('%.0f', now + ahead), 'PX', string.format('%.0f', math.ceil(ahead / 1000)))
  end
  out[2 * i - 1] = allowed and 1 or 0
  out[2 * i] = math.floor(ahead)
end
return out
"""
_SHA: Final = sha1(_SCRIPT.encode(), usedforsecurity=False).hexdigest()


@dataclass(slots=True)
class _Asked:
    key: str
    limit: Limit
    cost: int
    answer: asyncio.Future[Verdict]


class RedisRateLimiter:
    """``redis://host:6379/0?prefix=shop``; other parameters are redis-py's. One server, with or without replicas.

    While one script is under way, what is asked for meanwhile waits and goes together in the next: many workers under
    load cost one round trip for many verdicts. The clocks of the machines that ask have no part in it. A failover of
    the server may forget what was taken lately.

    Raises:
        ConfigurationError: redis-py does not understand the URL.
    """

    def __init__(self, url: str, *, patience: float = PATIENCE) -> None:
        parts = urlsplit(url)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        self._prefix = query.pop("prefix", "microkit")
        self._patience = patience
        self._client = _client(urlunsplit(parts._replace(query=urlencode(query))))
        self._asked: deque[_Asked] = deque()
        self._asking: asyncio.Task[None] | None = None
        self._closed = False

    async def take(self, key: str, limit: Limit, cost: int = 1) -> Verdict:
        check_cost(limit, cost)
        if self._closed:
            raise _closed()
        answer: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        self._asked.append(_Asked(self._name(key), limit, cost, answer))
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask(), name="rate limits")
        return await answer

    async def close(self) -> None:
        self._closed = True
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)
        _fail(self._asked, _closed())  # a task that is cancelled before its first step does nothing
        await self._client.aclose()

    def _name(self, key: str) -> str:
        if len(key) > _LONGEST_KEY:  # whoever chooses it must not fill the server with it
            key = sha256(key.encode("utf-8", "backslashreplace")).hexdigest()
        return f"{self._prefix}:rate:{key}"

    async def _ask(self) -> None:
        try:
            while self._asked:
                batch = [self._asked.popleft() for _ in range(min(_TOGETHER, len(self._asked)))]
                try:
                    _answer(batch, await self._run(batch))
                except BaseException as error:
                    _fail(batch, error)
                    if not isinstance(error, ConnectionError):
                        raise
        finally:
            self._asking = None

    async def _run(self, batch: list[_Asked]) -> list[int]:
        """The script's reply.

        Raises:
            ConnectionError: the server is away, does not answer in time, or refuses.
        """
        keys = [one.key for one in batch]
        numbers = [
            f"{seconds * 1e6:.3f}"
            for one in batch
            for seconds in (one.limit.spacing, one.limit.capacity, one.cost * one.limit.spacing)
        ]
        try:
            async with asyncio.timeout(self._patience):
                try:
                    return await self._execute("EVALSHA", _SHA, len(keys), *keys, *numbers)
                except NoScriptError:  # the first time, and after the server was restarted
                    return await self._execute("EVAL", _SCRIPT, len(keys), *keys, *numbers)
        except (RedisError, OSError, TimeoutError) as error:
            told = str(error) or f"no answer within {self._patience:g} s"
            raise ConnectionError(f"redis: {told}") from error

    async def _execute(self, *words: Any) -> list[int]:
        return await self._client.execute_command(*words)  # type: ignore[no-any-return, no-untyped-call]


def _client(url: str) -> Redis:
    try:
        client: Redis = Redis.from_url(
            url, retry=Retry(NoBackoff(), 0), protocol=2, max_connections=4, socket_timeout=None
        )
        client.connection_pool.make_connection()  # type: ignore[no-untyped-call]  # an unknown parameter shows here
    except (TypeError, ValueError):
        raise ConfigurationError(
            "rate_limit_url: it is no URL that redis-py takes; write redis://user:password@redis:6379/0, with what is "
            "special in the password percent-encoded"
        ) from None
    return client


def _closed() -> ConnectionError:
    return ConnectionError("the rate limiter is closed")


def _answer(batch: list[_Asked], reply: list[int]) -> None:
    for one, allowed, ahead in zip(batch, reply[::2], reply[1::2], strict=True):
        if not one.answer.done():  # else whoever asked is gone
            one.answer.set_result(verdict(one.limit, ahead / 1e6, one.cost, allowed=bool(allowed)))


def _fail(batch: list[_Asked] | deque[_Asked], error: BaseException) -> None:
    told = error if isinstance(error, ConnectionError) else _closed()
    for one in batch:
        if not one.answer.done():
            one.answer.set_exception(told)
    batch.clear()
