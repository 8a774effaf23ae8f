"""The DNS adapter passes the suites that every adapter passes, against a small DNS server; and what is its own."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from functools import partial
from urllib.parse import urlsplit

import pytest

from microkit.discovery.directory import Directory
from microkit.discovery.dns import DnsOptions, dns_discovery
from microkit.discovery.pace import Pace
from microkit.discovery.port import Discovery, Endpoint
from microkit.errors import Unavailable
from microkit.telemetry import Telemetry
from microkit.testing.discovery_faults import DiscoveryFaults
from microkit.testing.discovery_suite import PATIENCE, DiscoveryPromises, DiscoverySuite, until_known, urls
from microkit.testing.dns import DnsServer, Fault

pytestmark = pytest.mark.anyio


class Written(DiscoverySuite):
    """Who is known is written into the zone, as Kubernetes does it."""

    __test__ = False
    promises = DiscoveryPromises(remote=True)
    name = ""

    @pytest.fixture(autouse=True)
    async def _server(self, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
        # Asked five times as often as it would be, or each change would take its second.
        monkeypatch.setattr("microkit.discovery.dns.records.SHORTEST_TTL", 0.2)
        monkeypatch.setattr("microkit.discovery.directory.Pace", partial(Pace, every=0.2))
        self.telemetry = Telemetry("test")
        self.written: defaultdict[str, list[Endpoint]] = defaultdict(list)
        async with DnsServer(ttl=0, negative_ttl=0) as self.dns:
            yield
        await self.telemetry.close()

    async def open(self, *, max_staleness: float) -> Discovery:
        options = DnsOptions.from_url(f"dns://{self.dns.address}/{self.name}&timeout=300ms")
        return dns_discovery(options, self.telemetry, max_staleness=max_staleness)

    def write(self, service: str) -> None:
        raise NotImplementedError

    async def announce(self, service: str, endpoint: Endpoint) -> None:
        self.written[service].append(endpoint)
        self.write(service)

    async def withdraw(self, service: str, endpoint: Endpoint) -> None:
        self.written[service].remove(endpoint)
        self.write(service)

    async def kill(self) -> None:
        await self.dns.kill()

    async def revive(self) -> None:
        await self.dns.start()

    async def empty(self) -> None:
        self.dns.fault = Fault(empty=True)

    async def fill(self) -> None:
        self.dns.fault = None

    async def hang(self) -> None:
        self.dns.fault = Fault(silent=True)

    def asked(self) -> int:
        return int(
            sum(
                sample.value
                for family in self.telemetry.registry.collect()
                for sample in family.samples
                if sample.name == "microkit_discovery_answers_total"
            )
        )


class TestAddressRecords(Written):
    __test__ = True
    name = "{service}.svc.test?port=8000"

    def write(self, service: str) -> None:
        self.dns.put(
            f"{service}.svc.test.", "A", *(urlsplit(each.url).hostname or "" for each in self.written[service])
        )


class TestSrvRecords(Written, DiscoveryFaults):
    __test__ = True
    name = "_http._tcp.{service}.svc.test?scheme=http"

    def write(self, service: str) -> None:
        records = []
        for each in self.written[service]:
            address = urlsplit(each.url).hostname or ""
            target = f"{address.replace('.', '-')}.{service}.svc.test."
            self.dns.put(target, "A", address)
            records.append(f"0 50 8000 {target}")
        self.dns.put(f"_http._tcp.{service}.svc.test.", "SRV", *records)


SRV = "_http._tcp.billing.svc.test."


@pytest.fixture
async def server() -> AsyncIterator[DnsServer]:
    async with DnsServer() as server:
        yield server


@pytest.fixture
async def telemetry() -> AsyncIterator[Telemetry]:
    telemetry = Telemetry("test")
    yield telemetry
    await telemetry.close()


def by_srv(server: DnsServer, telemetry: Telemetry, more: str = "") -> Directory:
    url = f"dns://{server.address}/_http._tcp.{{service}}.svc.test{more}"
    return dns_discovery(DnsOptions.from_url(url), telemetry)


async def test_targets_are_asked_for_where_their_addresses_were_not_sent_along(
    server: DnsServer, telemetry: Telemetry
) -> None:
    server.additional = False
    server.put(SRV, "SRV", "0 10 8001 a.svc.test.", "0 20 8002 b.svc.test.")
    server.put("a.svc.test.", "A", "10.0.0.1")
    server.put("b.svc.test.", "AAAA", "fd00::2")
    discovery = by_srv(server, telemetry)
    found = await discovery.resolve("billing")
    await discovery.close()
    assert [(each.url, each.weight) for each in found] == [("http://10.0.0.1:8001", 10), ("http://[fd00::2]:8002", 20)]


async def test_a_reserve_of_lower_priority_is_not_mixed_in(server: DnsServer, telemetry: Telemetry) -> None:
    server.put(SRV, "SRV", "10 1 8001 a.svc.test.", "20 1 8002 b.svc.test.")
    server.put("a.svc.test.", "A", "10.0.0.1")
    server.put("b.svc.test.", "A", "10.0.0.2")
    discovery = by_srv(server, telemetry)
    assert await urls(discovery, "billing") == {"http://10.0.0.1:8001"}
    await discovery.close()


async def test_the_root_as_target_says_that_the_service_is_not_to_be_had(
    server: DnsServer, telemetry: Telemetry
) -> None:
    server.put(SRV, "SRV", "0 0 0 .")
    discovery = by_srv(server, telemetry)
    with pytest.raises(Unavailable, match="no instance"):
        await discovery.resolve("billing")
    await discovery.close()


async def test_a_weight_of_nothing_is_still_a_small_share(server: DnsServer, telemetry: Telemetry) -> None:
    server.put(SRV, "SRV", "0 0 8001 a.svc.test.")
    server.put("a.svc.test.", "A", "10.0.0.1")
    discovery = by_srv(server, telemetry)
    assert [each.weight for each in await discovery.resolve("billing")] == [1]
    await discovery.close()


async def test_names_are_kept_for_https_where_the_certificate_is_for_the_name(
    server: DnsServer, telemetry: Telemetry
) -> None:
    server.put(SRV, "SRV", "0 1 8443 a.svc.test.")
    server.put("a.svc.test.", "A", "10.0.0.1")
    discovery = by_srv(server, telemetry, "?scheme=https")
    assert await urls(discovery, "billing") == {"https://a.svc.test:8443"}
    await discovery.close()


async def test_an_answer_too_large_for_a_datagram_comes_by_tcp(server: DnsServer, telemetry: Telemetry) -> None:
    for number in range(1, 101):
        server.put(f"pod-{number}.billing.svc.test.", "A", f"10.0.1.{number}")
    server.put(SRV, "SRV", *(f"0 1 8000 pod-{number}.billing.svc.test." for number in range(1, 101)))
    discovery = by_srv(server, telemetry)
    assert len(await discovery.resolve("billing")) == 100
    await discovery.close()
    assert server.questions[f"SRV {SRV}"] == 2  # by UDP, cut; then by TCP


async def test_an_instance_with_both_kinds_of_address_is_one_instance(server: DnsServer, telemetry: Telemetry) -> None:
    server.put("billing.svc.test.", "A", "10.0.0.1")
    server.put("billing.svc.test.", "AAAA", "fd00::1")
    options = DnsOptions.from_url(f"dns://{server.address}/{{service}}.svc.test?port=8000")
    discovery = dns_discovery(options, telemetry)
    assert await urls(discovery, "billing") == {"http://10.0.0.1:8000"}
    await discovery.close()


async def test_records_are_not_asked_for_again_before_their_ttl_is_over(telemetry: Telemetry) -> None:
    async with DnsServer(ttl=3600) as server:
        server.put("billing.svc.test.", "A", "10.0.0.1")
        discovery = dns_discovery(
            DnsOptions.from_url(f"dns://{server.address}/{{service}}.svc.test?port=8000"), telemetry
        )
        await until_known(discovery, "billing", Endpoint("http://10.0.0.1:8000"))
        server.put("billing.svc.test.", "A", "10.0.0.2")
        await asyncio.sleep(1.2)
        for _ in range(100):
            assert await urls(discovery, "billing") == {"http://10.0.0.1:8000"}
        assert server.questions["A billing.svc.test."] == 1
        await discovery.close()


async def test_a_ttl_of_nothing_is_no_busy_loop(telemetry: Telemetry) -> None:
    async with DnsServer(ttl=0, negative_ttl=0) as server:
        server.put("billing.svc.test.", "A", "10.0.0.1")
        discovery = dns_discovery(
            DnsOptions.from_url(f"dns://{server.address}/{{service}}.svc.test?port=8000"), telemetry
        )
        await urls(discovery, "billing")
        await urls(discovery, "nobody")
        await asyncio.sleep(1.2)
        assert server.questions["A billing.svc.test."] <= 4
        assert server.questions["A nobody.svc.test."] <= 4
        await discovery.close()


async def test_a_server_that_fails_is_away_and_one_that_knows_no_name_says_so(
    server: DnsServer, telemetry: Telemetry
) -> None:
    server.put("billing.svc.test.", "A", "10.0.0.1")
    discovery = dns_discovery(
        DnsOptions.from_url(f"dns://{server.address}/{{service}}.svc.test?port=8000&timeout=300ms"), telemetry
    )
    await until_known(discovery, "billing", Endpoint("http://10.0.0.1:8000"))
    server.fault = Fault(rcode="SERVFAIL")
    async with asyncio.timeout(PATIENCE):
        while not (trouble := discovery.standings()[0].trouble):
            await asyncio.sleep(0.02)
    assert "the registry is away" in trouble
    assert await urls(discovery, "billing") == {"http://10.0.0.1:8000"}
    server.fault = Fault(rcode="NXDOMAIN")
    async with asyncio.timeout(PATIENCE):
        while "no instance" not in discovery.standings()[0].trouble:
            await asyncio.sleep(0.02)
    assert await urls(discovery, "billing") == {"http://10.0.0.1:8000"}
    await discovery.close()
