"""The load that billpay is drilled with: people enter bills and pay some of them.

Each bill must be there once, each payment must have come to its end and cost what it should, and each event been told.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

import aiohttp

from microkit.drill import Door, Outgoing, Verdict
from microkit.errors import MicrokitError, Unavailable
from reference.billpay.contracts.ledger import DEMO_PROVIDERS

PEOPLE: Final = 20
"""The gateway lets each do ten things a second."""

_PASSWORD: Final = "granite-lantern-93-willow"  # noqa: S105  of accounts that live for one drill
_PAYMENTS_EVERY: Final = 100
_READS: Final = {3: "/api/users/me", 7: "/api/payments?limit=5"}
"""By the last digit of a request's number."""
_SIGN_IN_EVERY: Final = 300.0
"""Seconds; a token lives for twice as long."""
_PATIENCE: Final = 60.0
_ENDING: Final = 180.0
"""Seconds in which every payment has come to its end."""
_LARGEST_FEE: Final = Decimal("0.001")
_LATER: Final = frozenset({429, 502, 503, 504})
_FINAL: Final = ("settled", "failed")


@dataclass
class _Person:
    email: str
    token: str = ""
    had: Decimal = Decimal(0)
    """What was in the wallet."""
    bill: str = ""
    """One that was entered and not paid yet."""
    payments: list[str] = field(default_factory=list)

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}


@dataclass
class _Found:
    """What is not as it should be."""

    lost: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    events_lost: list[str] = field(default_factory=list)


class BillLoad:
    """Requests go round the people. Most enter a bill, whose reference is the request's number; some read; every
    hundredth pays a bill."""

    def __init__(self) -> None:
        self._run = secrets.token_hex(4)
        self._people: list[_Person] = []
        self._due = (datetime.now(UTC) + timedelta(days=30)).isoformat()
        self._payee = next(iter(DEMO_PROVIDERS.values()))
        self._entering: set[int] = set()
        self._paying: dict[int, _Person] = {}
        self._staying: asyncio.Task[None] | None = None

    async def prepare(self, door: Door) -> None:
        for number in range(PEOPLE):
            email = f"drill-{self._run}-{number}@billpay.example"
            user = {"email": email, "password": _PASSWORD, "name": f"Drill {number}"}
            await _expect(door, Outgoing("POST", "/api/users", user), 201)
            self._people.append(_Person(email))
            await _sign_in(door, self._people[-1])
        await asyncio.gather(*(self._fund(door, person) for person in self._people))
        self._staying = asyncio.create_task(self._stay_signed_in(door))

    async def _stay_signed_in(self, door: Door) -> None:
        """Tokens live for minutes, and drills for longer."""
        while True:
            for person in self._people:
                await asyncio.sleep(_SIGN_IN_EVERY / PEOPLE)
                # The token that is there lives until the next time.
                with suppress(MicrokitError, aiohttp.ClientError, TimeoutError):
                    await _sign_in(door, person)

    async def _fund(self, door: Door, person: _Person) -> None:
        wallet = Outgoing("POST", "/api/payments/wallet", None, person.headers)
        person.had = Decimal((await _expect(door, wallet, 201))["balance"])
        until = time.monotonic() + _PATIENCE
        while person.had == 0:
            if time.monotonic() > until:
                raise MicrokitError(f"The load cannot be prepared: a wallet was not funded within {_PATIENCE:.0f} s")
            await asyncio.sleep(0.5)
            person.had = Decimal((await _expect(door, _get("/api/payments/wallet", person), 200))["balance"])

    def request(self, number: int) -> Outgoing:
        payer = self._people[number // _PAYMENTS_EVERY % PEOPLE]
        if number % _PAYMENTS_EVERY == 0 and payer.bill:
            bill, payer.bill = payer.bill, ""
            self._paying[number] = payer
            return Outgoing("POST", "/api/payments", {"bill_id": bill}, self._keyed(number, payer))
        person = self._people[number % PEOPLE]
        if (path := _READS.get(number % 10)) is not None:
            return _get(path, person)
        self._entering.add(number)
        entered = {
            "provider": "Drill Water",
            "reference": self._reference(number),
            "amount": "12.5000000",
            "payee": self._payee,
            "due_at": self._due,
        }
        return Outgoing("POST", "/api/bills", entered, self._keyed(number, person))

    def answered(self, number: int, body: Any) -> None:
        if number in self._paying:
            self._paying[number].payments.append(body["id"])
        elif number in self._entering:
            self._people[number % PEOPLE].bill = body["id"]

    async def verify(self, door: Door, acknowledged: Collection[int]) -> Verdict:
        try:
            return await self._verified(door, acknowledged)
        finally:
            if self._staying is not None:
                self._staying.cancel()
                await asyncio.gather(self._staying, return_exceptions=True)

    async def _verified(self, door: Door, acknowledged: Collection[int]) -> Verdict:
        found = _Found()
        for person in self._people:
            await _sign_in(door, person)
        # Payments first: bills change until the last of them has ended.
        settled = [payment for person in self._people for payment in await _payments(door, person, found)]
        told = {str(event["key"]) for event in await door.events("payment.payments") if _is(event, "PaymentSettled")}
        found.events_lost += [f"PaymentSettled of {payment}" for payment in settled if payment not in told]
        await self._check_bills(door, self._entering.intersection(acknowledged), found)
        return Verdict(found.lost, found.duplicated, found.events_lost)

    async def _check_bills(self, door: Door, entered: Collection[int], found: _Found) -> None:
        there: Counter[str] = Counter()
        names: dict[str, str] = {}
        for person in self._people:
            for bill in await _all(door, "/api/bills", person):
                there[bill["reference"]] += 1
                names[bill["id"]] = bill["reference"]
        events = await door.events("billing.bills")
        told = {names.get(str(event["key"])) for event in events if _is(event, "BillCreated")}
        wanted = {self._reference(number) for number in entered}
        found.lost += sorted(wanted - there.keys())
        found.duplicated += sorted(reference for reference, count in there.items() if count > 1)
        found.events_lost += sorted((wanted & there.keys()) - {name for name in told if name})

    def _reference(self, number: int) -> str:
        return f"DRILL-{self._run}-{number}"

    def _keyed(self, number: int, person: _Person) -> dict[str, str]:
        return {**person.headers, "Idempotency-Key": self._reference(number)}


async def _sign_in(door: Door, person: _Person) -> None:
    session = {"email": person.email, "password": _PASSWORD}
    person.token = (await _expect(door, Outgoing("POST", "/api/sessions", session), 201))["access_token"]


async def _payments(door: Door, person: _Person, found: _Found) -> list[str]:
    """The person's settled payments, when all have ended; and whether they cost what they should."""
    until = time.monotonic() + _ENDING
    while True:
        payments = {payment["id"]: payment for payment in await _all(door, "/api/payments", person)}
        going = [id_ for id_, payment in payments.items() if payment["status"] not in _FINAL]
        if not going or time.monotonic() > until:
            break
        await asyncio.sleep(1)
    found.lost += [f"payment {id_} has not ended" for id_ in going]
    found.lost += [f"payment {id_}" for id_ in person.payments if id_ not in payments]
    settled = [payment for payment in payments.values() if payment["status"] == "settled"]
    bills = Counter(payment["bill_id"] for payment in settled)
    found.duplicated += [f"bill {bill} was paid {count} times" for bill, count in bills.items() if count > 1]
    due = sum((Decimal(payment["amount"]) for payment in settled), Decimal(0))
    wallet = await _expect(door, _get("/api/payments/wallet", person), 200)
    paid = person.had - Decimal(wallet["balance"])
    if not going and not due <= paid <= due + _LARGEST_FEE * len(payments):
        (found.lost if paid < due else found.duplicated).append(f"{paid} was paid for what cost {due}")
    return [payment["id"] for payment in settled]


async def _all(door: Door, path: str, person: _Person) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    cursor = ""
    while True:
        page = await _expect(door, _get(f"{path}?limit=100{cursor}", person), 200)
        found += page["items"]
        if not page.get("next_cursor"):
            return found
        cursor = f"&cursor={page['next_cursor']}"


def _get(path: str, person: _Person) -> Outgoing:
    return Outgoing("GET", path, None, person.headers)


def _is(event: Any, kind: str) -> bool:
    return str(event["event_type"]).endswith(f".{kind}")


async def _expect(door: Door, outgoing: Outgoing, status: int) -> Any:
    """The answer; asked again where it is "not now"."""
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            found, body = await door.send(outgoing)
        except Unavailable as error:
            found, body = 503, str(error)
        if found == status:
            return body
        if found not in _LATER or time.monotonic() > until:
            raise MicrokitError(f"{outgoing.method} {outgoing.path} answered {found}: {body}")
        await asyncio.sleep(0.5)
