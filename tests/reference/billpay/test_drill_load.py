"""The load of a drill outlives the tokens of those who send it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest

from microkit.drill import Outgoing
from reference.billpay import drill
from reference.billpay.drill import PEOPLE, BillLoad

pytestmark = pytest.mark.anyio


class Door:
    """Knows everybody; a token is how often somebody has signed in."""

    def __init__(self) -> None:
        self.sessions: Counter[str] = Counter()
        self.away = False

    async def send(self, outgoing: Outgoing) -> tuple[int, Any]:
        match outgoing.method, outgoing.path.partition("?")[0]:
            case "POST", "/api/users":
                return 201, {}
            case "POST", "/api/sessions":
                if self.away:
                    self.away = False
                    return 500, {}
                self.sessions[outgoing.body["email"]] += 1
                return 201, {"access_token": str(self.sessions[outgoing.body["email"]])}
            case method, "/api/payments/wallet":
                return (201 if method == "POST" else 200), {"balance": "10000"}
            case _:
                return 200, {"items": []}

    async def events(self, topic: str) -> list[Mapping[str, Any]]:
        return []


async def test_everybody_is_signed_in_anew_before_the_token_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drill, "_SIGN_IN_EVERY", 0.02)
    load, door = BillLoad(), Door()
    await load.prepare(door)
    door.away = True  # which is no reason to stop
    async with asyncio.timeout(30):
        while min(door.sessions.values()) < 3:
            await asyncio.sleep(0.005)
    assert len(door.sessions) == PEOPLE
    assert int(load.request(1).headers["Authorization"].removeprefix("Bearer ")) >= 3
    verdict = await load.verify(door, [])
    assert (verdict.lost, verdict.duplicated, verdict.events_lost) == ([], [], [])
    signed_in = door.sessions.total()
    await asyncio.sleep(0.05)
    assert door.sessions.total() == signed_in
