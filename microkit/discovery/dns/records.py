"""Asking the DNS: SRV records (RFC 2782) or address records, asked again when their TTL is over."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import dns.asyncresolver
import dns.exception
import dns.name
import dns.rdatatype
import dns.rdtypes.IN.SRV
import dns.resolver

from microkit.discovery.directory import MAX_STALENESS, Directory, Found, RegistryAway
from microkit.discovery.dns.options import SERVICE, DnsOptions
from microkit.discovery.port import Endpoint
from microkit.errors import ConfigurationError
from microkit.telemetry import Telemetry

SHORTEST_TTL: Final = 1.0
"""Seconds between two questions, where the records say less: a TTL of 0 must be no busy loop."""

LONGEST_ABSENCE: Final = 30.0
"""Seconds after which a name without records is asked for again, where its zone would have it forgotten for longer."""

_UDP_PAYLOAD: Final = 1232
"""Bytes that reach everybody unfragmented (DNS flag day 2020); larger answers come by TCP."""


class DnsRecords:
    """The :class:`~microkit.discovery.directory.Source` of the DNS."""

    def __init__(self, options: DnsOptions) -> None:
        self._options = options
        try:
            self._resolver = dns.asyncresolver.Resolver(configure=options.server is None)
        except dns.resolver.NoResolverConfiguration as error:
            raise ConfigurationError(
                f"discovery_url: this machine names no name server ({error}); write dns://10.96.0.10/…"
            ) from error
        if options.server is not None:
            self._resolver.nameservers = [options.server[0]]
            self._resolver.port = options.server[1]
        self._resolver.cache = None  # what is known, and for how long, is the directory's to remember
        self._resolver.use_edns(0, 0, _UDP_PAYLOAD)
        self._resolver.lifetime = options.timeout

    async def find(self, service: str, cursor: int) -> Found:
        name = f"{self._options.name.replace(SERVICE, service)}."
        endpoints, ttl = await (self._by_srv(name) if self._options.srv else self._by_address(name))
        longest = ttl if endpoints else min(ttl, LONGEST_ABSENCE)
        return Found(endpoints, again=max(longest, SHORTEST_TTL))

    async def _by_address(self, name: str) -> tuple[list[Endpoint], float]:
        addresses, ttl = await self._addresses(name)
        return [Endpoint(self._url(address, self._options.port or 0)) for address in addresses], ttl

    async def _by_srv(self, name: str) -> tuple[list[Endpoint], float]:
        answer, ttl = await self._ask(name, "SRV")
        records = [found for found in answer.rrset or () if found.target.to_text() != "."] if answer else []
        # Those of a lower priority are a reserve, for when none of the first can be had: they are not mixed in.
        first = min((record.priority for record in records), default=0)
        endpoints: list[Endpoint] = []
        for record in records:
            if record.priority == first:
                found, shortest = await self._of(record, answer)
                endpoints += found
                ttl = min(ttl, shortest)
        return endpoints, ttl

    async def _of(
        self, record: dns.rdtypes.IN.SRV.SRV, answer: dns.resolver.Answer | None
    ) -> tuple[list[Endpoint], float]:
        target = record.target.to_text(omit_final_dot=True)
        # RFC 2782's weight of 0 is "a very small chance" beside others, and the only value where all have it.
        weight = max(record.weight, 1)
        if self._options.scheme == "https":  # the certificate is for the name
            return [Endpoint(self._url(target, record.port), weight=weight)], float("inf")
        addresses, ttl = _additional(record, answer) or await self._addresses(f"{target}.")
        found = [
            Endpoint(self._url(address, record.port), id=f"{target}:{record.port}/{address}", weight=weight)
            for address in addresses
        ]
        return found, ttl

    async def _addresses(self, name: str) -> tuple[list[str], float]:
        """Its IPv4 addresses; where it has none, the IPv6 ones: an instance with both is one and not two."""
        shortest = float("inf")
        for kind in ("A", "AAAA"):
            answer, ttl = await self._ask(name, kind)
            if answer is not None and answer.rrset:
                return _texts(answer.rrset), ttl
            shortest = min(shortest, ttl)
        return [], shortest

    async def _ask(self, name: str, kind: str) -> tuple[dns.resolver.Answer | None, float]:
        """The answer, None where the name has no such record; and for how many seconds it holds (RFC 2308)."""
        try:
            answer = await self._resolver.resolve(name, kind, raise_on_no_answer=False, search=False)
        except dns.resolver.NXDOMAIN as missing:
            response = missing.response(dns.name.from_text(name))  # type: ignore[no-untyped-call]
            return None, float(response.resolve_chaining().minimum_ttl)
        except (dns.exception.DNSException, OSError) as error:
            raise RegistryAway(" ".join(str(error).split())[:200] or type(error).__name__) from error
        return answer if answer.rrset is not None else None, float(answer.chaining_result.minimum_ttl)

    def _url(self, host: str, port: int) -> str:
        return f"{self._options.scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def _additional(record: dns.rdtypes.IN.SRV.SRV, answer: dns.resolver.Answer | None) -> tuple[list[str], float] | None:
    """The target's addresses, where the name server sent them along."""
    for kind in (dns.rdatatype.A, dns.rdatatype.AAAA):
        for rrset in answer.response.additional if answer is not None else ():
            if rrset.name == record.target and rrset.rdtype == kind:
                return _texts(rrset), float(rrset.ttl)
    return None


def _texts(records: Iterable[object]) -> list[str]:
    return [record.to_text() for record in records]  # type: ignore[attr-defined]  # all records have it


def dns_discovery(options: DnsOptions, telemetry: Telemetry, *, max_staleness: float = MAX_STALENESS) -> Directory:
    """Resolver and watcher over the DNS. Nobody registers: Kubernetes writes the records of the pods that are ready.

    Raises:
        ConfigurationError: the machine names no name server.
    """
    where = f"DNS at {options.server[0]}:{options.server[1]}" if options.server else "DNS"
    return Directory(DnsRecords(options), telemetry, where=where, max_staleness=max_staleness)
