"""Registries that hold nonsense: one bad entry takes none of the good ones away."""

from __future__ import annotations

import asyncio
import logging
import tracemalloc

import pytest

from microkit.client.balancer import Balancer
from microkit.discovery.consul.catalog import _endpoints
from microkit.discovery.directory import Directory, Found, RegistryAway, is_base_url
from microkit.discovery.port import Endpoint
from microkit.resilience.breaker import Breaker
from microkit.telemetry import Telemetry

pytestmark = pytest.mark.anyio

GOOD = Endpoint("http://10.0.0.1:8000")


class Told:
    """Answers what it is told to."""

    def __init__(self, *endpoints: Endpoint) -> None:
        self.endpoints = endpoints

    async def find(self, service: str, cursor: int) -> Found:
        return Found(self.endpoints, again=0.01)


@pytest.mark.parametrize(
    "url",
    [
        "http://10.0.0.2:0",
        "http://10.0.0.2:99999",
        "http://10.0.0.2:-1",
        "http://10.0.0.2:eight",
        "http://[::1",
        "http://:80",
        "http://a b:80",
        "http://user@evil:80",
        "ftp://10.0.0.2:80",
        "http://10.0.0.2\r\nX-Evil: 1:80",
        "",
    ],
)
async def test_an_instance_without_an_address_is_left_out_and_told_of_once(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert not is_base_url(url)
    telemetry = Telemetry("test")
    directory = Directory(Told(GOOD, Endpoint(url, id="bad")), telemetry, where="the registry")
    try:
        with caplog.at_level(logging.WARNING):
            for _ in range(3):
                assert list(await directory.resolve("bills")) == [GOOD]
                await asyncio.sleep(0.02)
        assert sum("no address" in record.message for record in caplog.records) == 1
    finally:
        await directory.close()
        await telemetry.close()


@pytest.mark.parametrize("url", ["http://[2001:db8::1]:80", "https://bills.example", "http://my_host.ns.svc:8000"])
def test_addresses_of_all_kinds_are_taken(url: str) -> None:
    assert is_base_url(url)


def test_an_entry_that_cannot_be_read_takes_none_of_the_others_away() -> None:
    good = {"Service": {"ID": "a", "Address": "10.0.0.1", "Port": 80}, "Node": {"Node": "n"}}
    bad = [{}, {"Service": {"ID": "b", "Address": "10.0.0.1"}}, {"Service": None}, {"Service": {"Weights": 3}}]
    assert [one.url for one in _endpoints([*bad, good])] == ["http://10.0.0.1:80"]  # type: ignore[list-item]
    with pytest.raises(RegistryAway):
        _endpoints(bad)  # type: ignore[arg-type]


def test_entries_that_come_twice_are_one_instance() -> None:
    balancer = Balancer(Breaker)
    balancer.update((GOOD, Endpoint(GOOD.url, id="again"), Endpoint(GOOD.url, id="and again")))
    assert len(balancer.instances) == 1


def test_ten_thousand_instances_that_come_and_go_leave_nothing_behind() -> None:
    balancer = Balancer(Breaker)
    fleets = [tuple(Endpoint(f"http://10.{fleet}.{n // 250}.{n % 250}:80") for n in range(10_000)) for fleet in (0, 1)]
    balancer.update(fleets[0])
    balancer.update(fleets[1])
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for turn in range(4):
            balancer.update(fleets[turn % 2])
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert len(balancer.instances) == 10_000
    assert balancer.pick() in balancer.instances
    assert grown < 20_000_000, "what is kept is one fleet, not five"


def test_an_ejection_ends_with_the_instance_and_never_empties_what_is_left() -> None:
    balancer = Balancer(Breaker)
    fleet = tuple(Endpoint(f"http://10.0.0.{n}:80") for n in range(1, 10))
    balancer.update(fleet)
    bad = list(balancer.instances)[:3]
    for instance in bad:
        for _ in range(5):
            balancer.failed(instance)
    assert balancer.ejected == 3
    balancer.update(tuple(instance.endpoint for instance in bad))
    assert balancer.ejected <= 1
    assert balancer.pick() is not None
    balancer.update(fleet[3:])
    assert (balancer.ejected, len(balancer.instances)) == (0, 6)
