"""Both rate limiters pass the suite; what happens when Redis is away, restarted, or its clock is set back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from redis.asyncio import Redis

from microkit.errors import ConfigurationError
from microkit.resilience.rate import Failover, Limit, MemoryRateLimiter, RateLimiter, connect
from microkit.resilience.rate.redis import RedisRateLimiter
from microkit.servers.valkey import ValkeyServer
from microkit.testing.rate_suite import SLOW, RateLimiterSuite
from microkit.testing.valkey import valkey

pytestmark = pytest.mark.anyio


class TestMemory(RateLimiterSuite):
    @pytest.fixture
    async def limiter(self) -> AsyncIterator[RateLimiter]:
        limiter = MemoryRateLimiter()
        yield limiter
        await limiter.close()


class TestRedis(RateLimiterSuite):
    @pytest.fixture
    async def limiter(self, redis_url: str) -> AsyncIterator[RateLimiter]:
        limiter = RedisRateLimiter(redis_url, patience=10)
        yield limiter
        await limiter.close()

    @pytest.fixture
    async def sibling(self, redis_url: str) -> AsyncIterator[RateLimiter]:
        limiter = RedisRateLimiter(redis_url, patience=10)
        yield limiter
        await limiter.close()


@asynccontextmanager
async def limiter_at(url: str) -> AsyncIterator[RedisRateLimiter]:
    limiter = RedisRateLimiter(url, patience=10)
    try:
        yield limiter
    finally:
        await limiter.close()


async def test_a_full_bucket_leaves_nothing_in_redis(redis_url: str) -> None:
    limit = Limit(1, per=0.2)
    url, _, prefix = redis_url.partition("?prefix=")
    client: Redis = Redis.from_url(url)
    async with limiter_at(redis_url) as limiter:
        await limiter.take("gone", limit)
        assert await client.exists(f"{prefix}:rate:gone")
        for _ in range(500):
            if not await client.exists(f"{prefix}:rate:gone"):
                break
            await asyncio.sleep(0.02)
        else:
            pytest.fail("the key stays for good")
    await client.aclose()


async def test_a_server_whose_clock_was_set_back_lets_wait_for_one_bucket_at_most(redis_url: str) -> None:
    """What lies in Redis after such a jump: a bucket that says that it is full in years."""
    url, _, prefix = redis_url.partition("?prefix=")
    client: Redis = Redis.from_url(url)
    limit = Limit(10, per=60)
    async with limiter_at(redis_url) as limiter:
        await limiter.take("jumped", limit)
        await client.set(f"{prefix}:rate:jumped", 4_000_000_000_000_000)
        found = await limiter.take("jumped", limit)
    await client.aclose()
    assert not found.allowed
    assert found.reset <= 60
    assert found.retry_after <= 6


@pytest.fixture
def own_server() -> Iterator[ValkeyServer]:
    with valkey() as server:
        yield server


async def test_while_the_store_is_away_some_count_on_and_the_others_let_pass(own_server: ValkeyServer) -> None:
    logins, reads = Limit(5, per=3600, away="local"), Limit(5, per=3600)
    limiter = Failover(RedisRateLimiter(own_server.url, patience=5), pause=0.1)
    for _ in range(3):
        assert (await limiter.take("login", logins)).allowed
        assert (await limiter.take("read", reads)).allowed
    own_server.kill()
    found = [await limiter.take("login", logins) for _ in range(20)]
    assert sum(one.allowed for one in found) == 2, "what was taken before counts"
    found = [await limiter.take("read", reads) for _ in range(20)]
    assert all(one.allowed and not one.counted for one in found)
    assert limiter.away
    own_server.start()
    while limiter.away:  # one in a while asks again
        await asyncio.sleep(0.02)
        await limiter.take("other", reads)
    found = [await limiter.take("read", reads) for _ in range(20)]
    assert all(one.counted for one in found)
    assert sum(one.allowed for one in found) <= 5
    await limiter.close()


async def test_a_server_that_hangs_holds_up_one_request_and_no_more() -> None:
    """A black hole: it takes the connection and says nothing."""
    asked = 0

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        while data := await reader.read(65536):
            asked += b"EVAL" in data
        writer.close()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    limiter = Failover(RedisRateLimiter(f"redis://127.0.0.1:{port}/0", patience=0.05), pause=3600)
    limit = Limit(5, per=3600, away="local")
    found = [await limiter.take("login", limit) for _ in range(50)]
    assert sum(one.allowed for one in found) == 5
    assert asked <= 1
    await limiter.close()
    server.close()
    await server.wait_closed()


async def test_a_restarted_server_has_forgotten_the_script_and_is_told_again(own_server: ValkeyServer) -> None:
    async with limiter_at(own_server.url) as limiter:
        await limiter.take("a", SLOW, 4)
        client: Redis = Redis.from_url(own_server.url)
        await client.script_flush()
        await client.aclose()
        assert (await limiter.take("a", SLOW)).remaining == 5


async def test_a_limiter_that_is_closed_leaves_nobody_waiting(redis_url: str) -> None:
    limiter = RedisRateLimiter(redis_url, patience=10)
    waiting = [asyncio.ensure_future(limiter.take("a", SLOW)) for _ in range(10)]
    await asyncio.sleep(0)
    await limiter.close()
    found = await asyncio.gather(*waiting, return_exceptions=True)
    assert len(found) == 10
    with pytest.raises(ConnectionError, match="closed"):
        await limiter.take("a", SLOW)


@pytest.mark.parametrize("url", ["memory", "http://redis", "redis://redis:x/0", "redis://redis:6379/0?colour=red"])
async def test_a_url_that_names_no_store_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="rate_limit_url"):
        connect(url)
