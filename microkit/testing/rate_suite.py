"""What every rate limiter must do: the conformance suite of :class:`microkit.resilience.rate.RateLimiter`.

Subclass it, give it the fixture ``limiter``, and ``sibling`` where the store is shared: a second limiter on the same
store (else the same one)::

    pytestmark = pytest.mark.anyio

    class TestMine(RateLimiterSuite):
        @pytest.fixture
        async def limiter(self) -> AsyncIterator[RateLimiter]: ...
"""

from __future__ import annotations

import asyncio
import time
from uuid import uuid4

import pytest

from microkit.resilience.rate import Limit, RateLimiter, Verdict

SLOW = Limit(10, per=3600)
"""Refills so slowly that no test sees a token come."""


class RateLimiterSuite:
    """Scenarios; each works on keys of its own."""

    @pytest.fixture
    def sibling(self, limiter: RateLimiter) -> RateLimiter:
        return limiter

    @pytest.fixture
    def key(self) -> str:
        return uuid4().hex

    async def test_a_full_bucket_gives_its_burst_and_no_more(self, limiter: RateLimiter, key: str) -> None:
        limit = Limit(10, per=3600, burst=3)
        found = [await limiter.take(key, limit) for _ in range(5)]
        assert [one.allowed for one in found] == [True, True, True, False, False]
        assert [one.remaining for one in found] == [2, 1, 0, 0, 0]
        assert all(one.counted and one.limit == limit for one in found)

    async def test_it_says_when_there_will_be_a_token_and_when_the_bucket_is_full(
        self, limiter: RateLimiter, key: str
    ) -> None:
        limit = Limit(2, per=600)
        await limiter.take(key, limit)
        second = await limiter.take(key, limit)
        refused = await limiter.take(key, limit)
        assert second.retry_after == 0.0
        assert 500 < second.reset <= 600
        assert 200 < refused.retry_after <= 300
        assert 500 < refused.reset <= 600

    async def test_who_waits_as_told_is_let_in(self, limiter: RateLimiter, key: str) -> None:
        limit = Limit(1, per=0.3)
        assert (await limiter.take(key, limit)).allowed
        found: Verdict = await limiter.take(key, limit)
        while not found.allowed:  # a clock that runs a little slower may make it twice
            assert 0 < found.retry_after <= 0.3 + 1e-6
            await asyncio.sleep(found.retry_after)
            found = await limiter.take(key, limit)

    async def test_tokens_come_one_by_one(self, limiter: RateLimiter, key: str) -> None:
        limit = Limit(100, per=10.0, burst=5)
        began = time.monotonic()
        admitted = 0
        while admitted < 10:
            found = await limiter.take(key, limit)
            admitted += found.allowed
            await asyncio.sleep(found.retry_after)
        # A busy machine only makes it longer; 5 of the burst and one each 100 ms cannot be here sooner.
        assert admitted <= limit.burst + (time.monotonic() - began) / limit.spacing + 1

    async def test_each_key_has_its_own_bucket(self, limiter: RateLimiter, key: str) -> None:
        limit = Limit(1, per=3600)
        assert (await limiter.take(f"{key}:a", limit)).allowed
        assert (await limiter.take(f"{key}:b", limit)).allowed
        assert not (await limiter.take(f"{key}:a", limit)).allowed

    async def test_a_refusal_takes_nothing(self, limiter: RateLimiter, key: str) -> None:
        await limiter.take(key, SLOW, 8)
        assert not (await limiter.take(key, SLOW, 5)).allowed
        assert (await limiter.take(key, SLOW, 2)).allowed

    async def test_looking_takes_nothing(self, limiter: RateLimiter, key: str) -> None:
        assert [(await limiter.take(key, SLOW, 0)).remaining for _ in range(20)] == [10] * 20

    async def test_more_than_a_bucket_holds_is_a_mistake(self, limiter: RateLimiter, key: str) -> None:
        for cost in (11, -1):
            with pytest.raises(ValueError, match="out of a bucket of 10"):
                await limiter.take(key, SLOW, cost)

    async def test_of_a_thousand_at_once_as_many_pass_as_there_are_tokens(
        self, limiter: RateLimiter, sibling: RateLimiter, key: str
    ) -> None:
        found = await asyncio.gather(*((limiter, sibling)[n % 2].take(key, SLOW) for n in range(1000)))
        assert sum(one.allowed for one in found) == 10
        assert sorted(one.remaining for one in found if one.allowed) == list(range(10))

    async def test_many_keys_at_once_are_kept_apart(self, limiter: RateLimiter, key: str) -> None:
        found = await asyncio.gather(*(limiter.take(f"{key}:{n % 100}", Limit(2, per=3600)) for n in range(500)))
        passed = [sum(one.allowed for one in found[n::100]) for n in range(100)]
        assert passed == [2] * 100

    async def test_a_clock_that_is_set_changes_nothing(
        self, limiter: RateLimiter, key: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = time.time
        assert (await limiter.take(key, SLOW, 9)).allowed
        for jump in (86_400.0, -86_400.0):
            monkeypatch.setattr(time, "time", lambda jump=jump: real() + jump)
            assert (await limiter.take(key, SLOW, 0)).remaining == 1
        monkeypatch.setattr(time, "time", real)

    async def test_who_stops_waiting_harms_nobody(self, limiter: RateLimiter, key: str) -> None:
        impatient = [asyncio.ensure_future(limiter.take(key, SLOW)) for _ in range(50)]
        await asyncio.sleep(0)
        for one in impatient[::2]:
            one.cancel()
        found = await asyncio.gather(*impatient, return_exceptions=True)
        assert sum(isinstance(one, Verdict) and one.allowed for one in found) <= 10
        assert not (await limiter.take(key, SLOW, 10)).allowed

    async def test_a_long_key_with_strange_characters_is_a_key(self, limiter: RateLimiter, key: str) -> None:
        strange = f"{key} \n\0ü{'x' * 5000}"
        assert (await limiter.take(strange, SLOW, 10)).allowed
        assert not (await limiter.take(strange, SLOW)).allowed
        assert (await limiter.take(f"{strange}y", SLOW)).allowed
