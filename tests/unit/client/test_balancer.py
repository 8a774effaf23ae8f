"""Which instance is called next."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable

import pytest

from microkit.client.balancer import Balancer, Ejection
from microkit.client.instance import Instance
from microkit.discovery.port import Endpoint
from microkit.resilience.breaker import Breaker


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def endpoints(size: int, zones: Iterable[str] = ()) -> tuple[Endpoint, ...]:
    named = list(zones) or [""] * size
    return tuple(Endpoint(f"http://10.0.0.{number}:80", zone=zone) for number, zone in enumerate(named))


class Bench:
    """A balancer whose breakers know of it, as an upstream's do."""

    def __init__(self, clock: Clock, size: int, zones: Iterable[str] = (), zone: str = "") -> None:
        self.clock = clock
        self.balancer = Balancer(
            lambda url: Breaker(url, clock=clock, changed=lambda *_: self.balancer.review()),
            zone=zone,
            ejection=Ejection(),
            clock=clock,
            draw=random.Random(7).random,
        )
        self.endpoints = endpoints(size, zones)
        self.balancer.update(self.endpoints)

    def __getitem__(self, number: int) -> Instance:
        return list(self.balancer.instances)[number]

    def picked(self, times: int, avoid: tuple[Instance, ...] = ()) -> Counter[int]:
        """How often each was chosen, each answering at once."""
        numbers = {instance: number for number, instance in enumerate(self.balancer.instances)}
        found: Counter[int] = Counter()
        for _ in range(times):
            instance = self.balancer.pick(avoid)
            assert instance is not None
            found[numbers[instance]] += 1
        return found

    def all_answer(self, seconds: float = 0.01) -> None:
        for instance in self.balancer.instances:
            instance.answered(seconds, self.clock.now)

    def fails(self, number: int, times: int = 5) -> None:
        for _ in range(times):
            self.balancer.failed(self[number])

    def opens(self, number: int) -> None:
        self[number].breaker.open()


def test_equal_instances_are_chosen_equally(clock: Clock) -> None:
    bench = Bench(clock, 10)
    bench.all_answer()
    found = bench.picked(10_000)
    assert len(found) == 10
    assert max(found.values()) < 1.3 * min(found.values())


def test_the_slower_of_two_and_the_one_with_more_calls_is_left_out(clock: Clock) -> None:
    bench = Bench(clock, 2)
    bench[0].answered(0.1, clock.now)
    bench[1].answered(0.01, clock.now)
    assert bench.picked(100) == {1: 100}
    bench[1].pending = 12
    assert bench.picked(100) == {0: 100}


def test_a_peak_counts_at_once_and_is_forgotten_slowly(clock: Clock) -> None:
    bench = Bench(clock, 2)
    bench.all_answer(0.01)
    bench[0].answered(1.0, clock.now)
    assert bench.picked(50) == {1: 50}
    clock.now += 1
    bench[0].answered(0.01, clock.now)
    assert bench[0].cost(clock.now) > 0.5
    clock.now += 100
    assert bench[0].cost(clock.now) < 0.001  # tried again


def test_failing_fast_is_no_advantage(clock: Clock) -> None:
    bench = Bench(clock, 2)
    bench.all_answer(0.01)
    bench[0].failed(0.0001, clock.now)
    assert bench.picked(50) == {1: 50}


def test_one_of_which_nothing_is_known_gets_one_call_at_first(clock: Clock) -> None:
    bench = Bench(clock, 2)
    bench[1].answered(0.01, clock.now)
    assert bench.balancer.pick() is bench[0]
    bench[0].pending = 1
    assert bench.picked(50) == {1: 50}


def test_weight_is_a_share_and_nothing_is_sent_to_none(clock: Clock) -> None:
    bench = Bench(clock, 3)
    heavy, light, none = bench.endpoints
    bench.balancer.update((Endpoint(heavy.url, weight=2), light, Endpoint(none.url, weight=0)))
    bench.all_answer()
    assert bench[0].cost(clock.now) * 2 == bench[1].cost(clock.now)
    assert bench.picked(50) == {0: 50}
    bench.balancer.update((Endpoint(none.url, weight=0),))
    assert bench.balancer.pick() is bench[0]  # better than nobody


def test_a_new_instance_starts_slowly(clock: Clock) -> None:
    bench = Bench(clock, 2)
    bench.all_answer()
    assert not bench[0].slow
    bench.balancer.update((*bench.endpoints, Endpoint("http://10.0.0.9:80")))
    bench.all_answer()
    assert bench[2].cost(clock.now) == pytest.approx(10 * bench[0].cost(clock.now))
    clock.now += 15
    bench.all_answer()
    assert bench[2].cost(clock.now) == pytest.approx(2 * bench[0].cost(clock.now))
    clock.now += 15
    bench.all_answer()
    assert bench[2].cost(clock.now) == pytest.approx(bench[0].cost(clock.now))


def test_an_instance_that_stays_keeps_what_is_known_of_it(clock: Clock) -> None:
    bench = Bench(clock, 3)
    bench.all_answer()
    kept = bench[1]
    bench.balancer.update(bench.endpoints[1:])
    assert bench[0] is kept
    assert set(bench.picked(100)) == {0, 1}


def test_five_failures_in_a_row_eject_for_half_a_minute_and_then_for_longer(clock: Clock) -> None:
    bench = Bench(clock, 3)
    bench.all_answer()
    bench.fails(0, 4)
    bench.balancer.succeeded(bench[0])
    bench.fails(0, 4)
    assert bench.balancer.ejected == 0
    for seconds in (30, 60, 90):
        bench.fails(0)
        assert bench.balancer.ejected == 1
        assert 0 not in bench.picked(200)
        clock.now += seconds - 1
        assert 0 not in bench.picked(200)
        clock.now += 1
        bench.all_answer()
        assert 0 in bench.picked(200)


@pytest.mark.parametrize(("size", "most"), [(1, 0), (2, 0), (3, 1), (5, 1), (6, 2), (10, 3)])
def test_never_more_than_a_third_is_ejected(clock: Clock, size: int, most: int) -> None:
    bench = Bench(clock, size)
    bench.all_answer()
    for number in range(size):
        bench.fails(number)
    assert bench.balancer.ejected == most
    assert len(bench.picked(500)) == size - most


def test_a_third_of_fewer_is_less(clock: Clock) -> None:
    bench = Bench(clock, 6)
    bench.fails(0)
    bench.fails(1)
    assert bench.balancer.ejected == 2
    bench.balancer.update(bench.endpoints[:3])
    assert bench.balancer.ejected == 1
    bench.balancer.update(bench.endpoints[:1])
    assert bench.balancer.ejected == 0
    assert bench.balancer.pick() is bench[0]


def test_one_with_an_open_breaker_is_not_chosen_until_it_may_be_probed(clock: Clock) -> None:
    bench = Bench(clock, 2)
    bench.all_answer()
    bench.opens(0)
    assert bench.picked(100) == {1: 100}
    bench.opens(1)
    assert bench.balancer.pick() is None
    assert clock.now < bench.balancer.waits_until() <= clock.now + 5.5
    clock.now += 6
    probed = bench.balancer.pick()
    assert probed is not None
    ticket = probed.breaker.enter()
    bench.balancer.review()
    other = bench.balancer.pick()
    assert other is not None
    assert other is not probed  # one probe each
    probed.breaker.succeeded(ticket)
    assert set(bench.picked(100)) <= {0, 1}


def test_what_is_to_be_avoided_is_chosen_only_where_nobody_else_is(clock: Clock) -> None:
    bench = Bench(clock, 3)
    bench.all_answer()
    assert set(bench.picked(100, (bench[0],))) == {1, 2}
    assert set(bench.picked(100, (bench[0], bench[1]))) == {2}
    assert bench.balancer.others((bench[0], bench[1]))
    everybody = (bench[0], bench[1], bench[2])
    bench[0].answered(1.0, clock.now)
    bench[1].answered(1.0, clock.now)
    assert 2 not in bench.picked(100, everybody)  # it is the cheapest, and has just failed
    assert not bench.balancer.others(everybody)


def test_one_that_took_no_connection_is_asked_again_after_all_that_did(clock: Clock) -> None:
    bench = Bench(clock, 2)
    bench.all_answer()
    bench[1].away = True
    assert set(bench.picked(100, (bench[1], bench[0]))) == {0}, "it failed last, and somebody is there"
    assert set(bench.picked(100, (bench[1],))) == {0}
    bench[0].away = True
    assert set(bench.picked(100, (bench[1], bench[0]))) == {1}, "nobody is there: not the last again"


def near(bench: Bench, times: int = 4000) -> float:
    found = bench.picked(times)
    instances = list(bench.balancer.instances)
    return sum(count for number, count in found.items() if instances[number].endpoint.zone == "a") / times


def test_calls_stay_in_their_own_zone(clock: Clock) -> None:
    bench = Bench(clock, 6, zones="aabbcc", zone="a")
    bench.all_answer()
    assert near(bench) == 1.0
    assert near(Bench(clock, 6, zones="aabbcc")) < 0.5


@pytest.mark.parametrize("zones", ["abbb", "aa" + "b" * 10, "bbbb"])
def test_a_zone_that_is_too_small_does_not_carry_it_alone(clock: Clock, zones: str) -> None:
    bench = Bench(clock, len(zones), zones=zones, zone="a")
    bench.all_answer()
    assert near(bench) < 0.5


def test_what_a_zone_cannot_carry_spills_over(clock: Clock) -> None:
    bench = Bench(clock, 8, zones="aaaabbbb", zone="a")
    bench.all_answer()
    bench.opens(0)
    assert near(bench) == 1.0  # three of four carry it
    bench.opens(1)
    assert 0.7 < near(bench) < 0.9  # two: their share times 1.4, and some of the rest falls on them
    bench.opens(2)
    assert near(bench) < 0.5


def test_the_same_endpoints_cost_nothing(clock: Clock) -> None:
    bench = Bench(clock, 3)

    class Unreadable(tuple[Endpoint, ...]):
        def __iter__(self) -> object:  # type: ignore[override]  # must not be read
            raise AssertionError

    bench.balancer._endpoints = same = Unreadable(bench.endpoints)
    bench.balancer.update(same)
