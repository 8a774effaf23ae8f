"""Retries are a fifth of the calls, and ten a second for who calls seldom."""

from __future__ import annotations

from microkit.resilience.backoff import full_jitter, retry_after
from microkit.resilience.budget import RetryBudget


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def spend(budget: RetryBudget) -> int:
    spent = 0
    while budget.withdraw():
        spent += 1
    return spent


def test_a_fifth_of_the_calls_may_be_retried_besides_the_free_ones() -> None:
    budget = RetryBudget(clock=Clock())
    for _ in range(1000):
        budget.deposit()
    assert 209 <= spend(budget) <= 210
    assert not budget.withdraw()


def test_ten_a_second_are_free_and_are_not_saved_up() -> None:
    clock = Clock()
    budget = RetryBudget(clock=clock)
    assert spend(budget) == 10
    clock.now += 0.5
    assert spend(budget) == 5
    clock.now += 3600
    assert spend(budget) == 10


def test_a_deposit_expires_after_ten_seconds() -> None:
    clock = Clock()
    budget = RetryBudget(free=0, clock=clock)
    for _ in range(100):
        budget.deposit()
    clock.now += 9
    for _ in range(50):
        budget.deposit()
    assert round(budget.balance()) == 30
    clock.now += 1
    assert round(budget.balance()) == 10
    assert spend(budget) in {9, 10}
    clock.now += 100
    assert budget.balance() == 0
    assert not budget.withdraw()


def test_what_expires_first_is_spent_first() -> None:
    clock = Clock()
    budget = RetryBudget(free=0, clock=clock)
    for _ in range(50):
        budget.deposit()
    clock.now += 9
    for _ in range(50):
        budget.deposit()
    assert sum(budget.withdraw() for _ in range(10)) == 10
    clock.now += 1
    assert round(budget.balance()) == 10


def test_under_steady_failure_the_extra_load_is_a_fifth_and_ten_a_second() -> None:
    clock = Clock()
    budget = RetryBudget(clock=clock)
    retries = 0
    for _ in range(20_000):  # 1,000 calls a second for twenty seconds, all of which fail
        clock.now += 0.001
        budget.deposit()
        retries += budget.withdraw()
    assert 4000 + 200 - 10 <= retries <= 4000 + 200 + 11


def test_the_pause_is_random_and_grows() -> None:
    pauses = [full_jitter(3, 0.025, 1.0) for _ in range(1000)]
    assert 0 <= min(pauses) < 0.02
    assert 0.08 < max(pauses) <= 0.1
    assert max(full_jitter(50, 0.025, 1.0) for _ in range(1000)) <= 1.0


def test_retry_after_is_seconds_or_a_date() -> None:
    assert retry_after("7") == 7.0
    assert retry_after(" 0 ") == 0.0
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert (retry_after("Fri, 31 Dec 2999 23:59:59 GMT") or 0) > 1e6
    for bad in (None, "", "soon", "-1", "1e9", "٣", "9" * 400):
        assert retry_after(bad) is None
