"""Limits as they are written, buckets on a clock of the test's, and what clients are told."""

from __future__ import annotations

import pytest

from microkit.errors import DefinitionError
from microkit.resilience.rate import Limit, MemoryRateLimiter, Policy


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def passed(limiter: MemoryRateLimiter, limit: Limit, times: int, key: str = "k") -> int:
    return sum(limiter.take_now(key, limit).allowed for _ in range(times))


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("10/60s", Limit(10, per=60)),
        ("100/s burst=200", Limit(100, per=1, burst=200)),
        ("5/m by=address away=local", Limit(5, per=60, by="address", away="local")),
        ("1/500ms", Limit(1, per=0.5)),
        ("1000/d by=everybody", Limit(1000, per=86400, by="everybody")),
    ],
)
def test_a_limit_is_written_as_settings_write_it(text: str, limit: Limit) -> None:
    assert Limit.parse(text) == limit


@pytest.mark.parametrize(
    "text", ["", "10", "10/", "ten/s", "0/s", "-1/s", "10/0s", "10/s burst", "10/s burst=x", "10/s by=me", "10/s to=1",
             "10/s burst=1 burst=2", "1e9/s", "10/sec"]
)  # fmt: skip
def test_what_is_no_limit_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="write 10/60s"):
        Limit.parse(text)


@pytest.mark.parametrize(
    "wrong", [(0, 1.0, 0), (1, 0.0, 0), (1, -1.0, 0), (1, float("inf"), 0), (1, float("nan"), 0), (1, 1.0, -1)]
)
def test_a_limit_of_nothing_is_refused(wrong: tuple[int, float, int]) -> None:
    with pytest.raises(DefinitionError, match="limits nothing"):
        Limit(*wrong)


def test_in_any_time_no_more_pass_than_burst_and_rate_allow(clock: Clock) -> None:
    limiter, limit = MemoryRateLimiter(clock=clock), Limit(10, per=60, burst=3)
    assert passed(limiter, limit, 100) == 3
    for seconds, tokens in ((5.9, 0), (0.2, 1), (60.0, 3), (6.0, 1)):  # a bucket holds no more than it holds
        clock.now += seconds
        assert passed(limiter, limit, 100) == tokens


@pytest.mark.parametrize("requests", [3, 7, 1000, 30_000])
def test_fractions_of_a_second_give_no_token_away_and_keep_none(requests: int, clock: Clock) -> None:
    limiter, limit = MemoryRateLimiter(clock=clock), Limit(requests, per=1)
    assert passed(limiter, limit, requests + 10) == requests
    total = 0
    for _ in range(1000):
        clock.now += 0.001
        total += passed(limiter, limit, 40)
    assert requests - 1 <= total <= requests


def test_full_buckets_are_forgotten(clock: Clock) -> None:
    limiter, limit = MemoryRateLimiter(clock=clock), Limit(1, per=1)
    for n in range(50_000):
        limiter.take_now(str(n), limit)
        clock.now += 0.001
    assert len(limiter) < 5_000


def test_memory_is_bounded_and_those_who_used_most_are_remembered(clock: Clock) -> None:
    limiter, limit = MemoryRateLimiter(most=2_000, clock=clock), Limit(5, per=3600)
    passed(limiter, limit, 5, "guesser")
    for n in range(50_000):
        limiter.take_now(str(n), limit)
    assert len(limiter) <= 2_001
    assert passed(limiter, limit, 5, "guesser") == 0


@pytest.mark.parametrize(
    ("limit", "takes", "policy", "told"),
    [
        (Limit(10, per=60), 1, '"Billing.create";q=10;w=60', '"Billing.create";r=9;t=54'),
        (Limit(10, per=60), 9, '"Billing.create";q=10;w=60', '"Billing.create";r=1;t=6'),
        (Limit(10, per=60), 10, '"Billing.create";q=10;w=60', '"Billing.create";r=0;t=6'),
        (Limit(10, per=60), 11, '"Billing.create";q=10;w=60', '"Billing.create";r=0;t=6'),
        (Limit(10, per=0.5, burst=20), 1, '"Billing.create";q=10;microkit-burst=20', '"Billing.create";r=19;t=1'),
    ],
)
def test_clients_are_told_as_the_draft_has_it(limit: Limit, takes: int, policy: str, told: str, clock: Clock) -> None:
    limiter = MemoryRateLimiter(clock=clock)
    for _ in range(takes):
        verdict = limiter.take_now("k", limit)
    assert Policy("Billing.create", limit).fields(verdict) == [
        (b"ratelimit-policy", policy.encode()),
        (b"ratelimit", told.encode()),
    ]


def test_a_refusal_says_when_to_come_back_and_not_before_the_window_ends(clock: Clock) -> None:
    limiter, limit = MemoryRateLimiter(clock=clock), Limit(2, per=60)
    passed(limiter, limit, 2)
    problem = Policy("log-in", limit).refusal(limiter.take_now("k", limit))
    assert problem.status == 429
    assert problem.headers["retry-after"] == "30"
    assert problem.headers["ratelimit"] == '"log-in";r=0;t=30'
    assert problem.document()["violated-policies"] == ["log-in"]


def test_a_name_that_cannot_stand_in_a_header_is_refused() -> None:
    with pytest.raises(DefinitionError, match="cannot be the name of a limit"):
        Policy('x"y', Limit(1))
