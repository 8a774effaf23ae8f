"""The Redis adapter with one partition a topic, and a client that does to its streams what others might."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis

from microkit.bus.redis import RedisBus


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Any]:
    client: Any = Redis.from_url(redis_url.partition("?")[0])
    yield client
    await client.aclose()


@pytest.fixture
async def bus(redis_url: str) -> AsyncIterator[RedisBus]:
    bus = RedisBus(f"{redis_url}&partitions=1&lease=600ms&keep=0")
    await bus.start()
    yield bus
    await bus.close()
