"""The load that billpay is drilled with: people enter bills, each of which must be there once, with its event."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from microkit.drill import Door, Outgoing, Verdict
from microkit.errors import MicrokitError
from reference.billpay.contracts.ledger import DEMO_PROVIDERS

PEOPLE: Final = 20
"""The gateway lets each do ten things a second."""

_PASSWORD: Final = "granite-lantern-93-willow"  # noqa: S105  of accounts that live for one drill


class BillLoad:
    """Requests go round the people; the bill's reference is its number."""

    def __init__(self) -> None:
        self._run = secrets.token_hex(4)
        self._tokens: list[str] = []
        self._due = (datetime.now(UTC) + timedelta(days=30)).isoformat()
        self._payee = next(iter(DEMO_PROVIDERS.values()))

    async def prepare(self, door: Door) -> None:
        for number in range(PEOPLE):
            email = f"drill-{self._run}-{number}@billpay.example"
            user = {"email": email, "password": _PASSWORD, "name": f"Drill {number}"}
            await _expect(door, Outgoing("POST", "/api/users", user), 201)
            session = {"email": email, "password": _PASSWORD}
            tokens = await _expect(door, Outgoing("POST", "/api/sessions", session), 201)
            self._tokens.append(tokens["access_token"])

    def request(self, number: int) -> Outgoing:
        bill = {
            "provider": "Drill Water",
            "reference": self._reference(number),
            "amount": "12.5000000",
            "payee": self._payee,
            "due_at": self._due,
        }
        headers = {**self._as(number % PEOPLE), "Idempotency-Key": self._reference(number)}
        return Outgoing("POST", "/api/bills", bill, headers)

    async def verify(self, door: Door, acknowledged: Collection[int]) -> Verdict:
        there: Counter[str] = Counter()
        names: dict[str, str] = {}
        for person in range(PEOPLE):
            cursor = ""
            while True:
                page = await _expect(
                    door, Outgoing("GET", f"/api/bills?limit=100{cursor}", None, self._as(person)), 200
                )
                for bill in page["items"]:
                    there[bill["reference"]] += 1
                    names[bill["id"]] = bill["reference"]
                if not page.get("next_cursor"):
                    break
                cursor = f"&cursor={page['next_cursor']}"
        told = {
            names.get(str(event["key"]))
            for event in await door.events("billing.bills")
            if str(event["event_type"]).endswith("BillCreated")
        }
        wanted = {self._reference(number) for number in acknowledged}
        return Verdict(
            lost=sorted(wanted - there.keys()),
            duplicated=sorted(reference for reference, count in there.items() if count > 1),
            events_lost=sorted((wanted & there.keys()) - {name for name in told if name}),
        )

    def _reference(self, number: int) -> str:
        return f"DRILL-{self._run}-{number}"

    def _as(self, person: int) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._tokens[person]}"}


async def _expect(door: Door, outgoing: Outgoing, status: int) -> Any:
    found, body = await door.send(outgoing)
    if found != status:
        raise MicrokitError(f"The load cannot be prepared: {outgoing.method} {outgoing.path} answered {found}: {body}")
    return body
