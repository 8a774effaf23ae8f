"""A small DNS server on loopback, UDP and TCP, over records that a test can change. Messages are dnspython's.

It answers with authority, for names below ``zone`` only; a negative answer has the zone's SOA, as RFC 2308 wants it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, cast

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

UDP_SIZE: Final = 512
"""Bytes of an answer for a client that says nothing of its own buffer."""


@dataclass(frozen=True, slots=True)
class Fault:
    """How the server is ill: ``silent`` answers nothing, ``rcode`` answers with it (``SERVFAIL``), ``empty`` says of
    every name that it exists and has no records."""

    silent: bool = False
    rcode: str | None = None
    empty: bool = False


class DnsServer:
    """``async with DnsServer() as server:``, then ``server.put("billing.svc.test.", "A", "10.0.0.5")``.

    ``ttl`` is that of all records, ``negative_ttl`` that of their absence, in seconds; ``questions`` counts questions
    by type and name.
    """

    def __init__(self, zone: str = "svc.test.", *, ttl: int = 1, negative_ttl: int = 1) -> None:
        self.zone = dns.name.from_text(zone)
        self.ttl = ttl
        self.negative_ttl = negative_ttl
        self.additional = True
        """Whether the addresses of SRV targets are sent along."""
        self.fault: Fault | None = None
        self.questions: Counter[str] = Counter()
        self.port = 0
        self._records: dict[tuple[dns.name.Name, str], list[str]] = {}
        self._udp: asyncio.DatagramTransport | None = None
        self._tcp: asyncio.Server | None = None

    @property
    def address(self) -> str:
        """As it stands in a discovery URL: ``127.0.0.1:port``."""
        return f"127.0.0.1:{self.port}"

    def put(self, name: str, kind: str, *records: str) -> None:
        """The records of that name and type from now on; none takes them away."""
        key = (dns.name.from_text(name), kind)
        if records:
            self._records[key] = list(records)
        else:
            self._records.pop(key, None)

    async def __aenter__(self) -> DnsServer:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()

    async def start(self) -> None:
        """Listens; a second time on the same port."""
        self._tcp = await asyncio.start_server(self._stream, "127.0.0.1", self.port)
        self.port = self._tcp.sockets[0].getsockname()[1]
        loop = asyncio.get_running_loop()
        self._udp, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(self), ("127.0.0.1", self.port))

    async def kill(self) -> None:
        """Ends it; what it knew stays for :meth:`start`."""
        if self._udp is not None:
            self._udp.close()
            self._udp = None
        if self._tcp is not None:
            self._tcp.close()
            await self._tcp.wait_closed()
            self._tcp = None
        await asyncio.sleep(0)  # the datagram socket closes in the next turn of the loop

    def answer(self, wire: bytes, *, largest: int | None) -> bytes | None:
        """The answer to one message. One of more than ``largest`` bytes is cut, and says so; ``None`` says nothing."""
        try:
            query = dns.message.from_wire(wire)
        except dns.exception.DNSException:
            return None
        if self.fault is not None and self.fault.silent:
            return None
        response = dns.message.make_response(query)
        response.flags |= dns.flags.AA
        for question in query.question:
            self._answer(response, question)
        if largest is None:
            return response.to_wire(max_size=65535)
        try:
            return response.to_wire(max_size=max(largest, query.payload))
        except dns.exception.TooBig:
            short = dns.message.make_response(query)
            short.flags |= dns.flags.AA | dns.flags.TC
            return short.to_wire()

    def _answer(self, response: dns.message.Message, question: dns.rrset.RRset) -> None:
        kind = dns.rdatatype.to_text(question.rdtype)
        self.questions[f"{kind} {question.name}"] += 1
        if self.fault is not None and self.fault.rcode is not None:
            response.set_rcode(dns.rcode.from_text(self.fault.rcode))
            return
        empty = self.fault is not None and self.fault.empty
        records = [] if empty else self._records.get((question.name, kind), [])
        if not records:
            if not empty and not any(name == question.name for name, _ in self._records):
                response.set_rcode(dns.rcode.NXDOMAIN)
            response.authority.append(self._soa())
            return
        answer = dns.rrset.from_text_list(question.name, self.ttl, "IN", kind, records)
        response.answer.append(answer)
        if kind == "SRV" and self.additional:
            response.additional += self._addresses(answer)

    def _addresses(self, answer: dns.rrset.RRset) -> list[dns.rrset.RRset]:
        return [
            dns.rrset.from_text_list(record.target, self.ttl, "IN", kind, self._records[record.target, kind])
            for record in answer
            for kind in ("A", "AAAA")
            if (record.target, kind) in self._records
        ]

    def _soa(self) -> dns.rrset.RRset:
        text = f"ns.{self.zone} admin.{self.zone} 1 3600 600 86400 {self.negative_ttl}"
        return dns.rrset.from_text(self.zone, self.negative_ttl, "IN", "SOA", text)

    async def _stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                size = int.from_bytes(await reader.readexactly(2), "big")
                wire = self.answer(await reader.readexactly(size), largest=None)
                if wire is not None:
                    writer.write(len(wire).to_bytes(2, "big") + wire)
                    await writer.drain()
        writer.close()


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, server: DnsServer) -> None:
        self._server = server
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)  # what the selector loop gives is no subclass

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        wire = self._server.answer(data, largest=UDP_SIZE)
        if wire is not None and self._transport is not None:
            self._transport.sendto(wire, addr)
