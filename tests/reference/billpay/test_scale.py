"""Two instances of a service: one goes, and nobody notices."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from microkit import PageRequest
from microkit.instance import Instance
from microkit.testing.system import SystemUnderTest, as_user, run_system
from reference.billpay.contracts.billing import Billing
from reference.billpay.contracts.payment import PaymentStatus
from reference.billpay.system import system
from tests.reference.billpay.people import Billpay, WayToHorizon

pytestmark = pytest.mark.anyio

USERS = 4
"""Each keeps below what one user may ask for in a minute."""

CALLS = 60
"""Of each user before, and as many after, an instance goes."""


SETTINGS: dict[str, dict[str, object]] = {
    "ledger": {"close_interval": 0.05, "idle_interval": 0.2},
    "payment": {"payment_window": 5.0, "history_lag": 1.0, "request_timeout": 30.0},
    "billing": {"request_timeout": 30.0},
}


@pytest.fixture
async def billpay(tmp_path: Path) -> AsyncIterator[SystemUnderTest]:
    async with WayToHorizon().open() as way:
        payment = SETTINGS["payment"] | {"horizon_url": way.url}
        settings = SETTINGS | {"payment": payment}
        async with run_system(system, tmp_path, settings=settings, scale={"billing": 2, "payment": 2}) as running:
            way.target = running.urls["ledger"]
            yield running


def answered(instance: Instance) -> int:
    """How many requests an instance has answered."""
    return int(
        sum(
            sample.value
            for family in instance.telemetry.registry.collect()
            for sample in family.samples
            if sample.name == "http_server_request_duration_seconds_count"
        )
    )


class Traffic:
    """Users who ask for their bills, through the gateway and through the client of a neighbour, without a pause."""

    def __init__(self, billpay: SystemUnderTest) -> None:
        self._billpay = billpay
        self.outcomes: Counter[str] = Counter()

    async def run(self, calls: int) -> None:
        async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:
            for number in range(USERS):
                group.create_task(self._one(session, self._billpay.token(f"user-{number}", "member"), calls))

    async def _one(self, session: aiohttp.ClientSession, token: str, calls: int) -> None:
        headers = {"Authorization": f"Bearer {token}"}
        bills = self._billpay["payment"].client(Billing)
        for number in range(calls):
            if number % 3 == 0:
                with as_user(token):
                    await bills.list(PageRequest())
                self.outcomes["client"] += 1
                continue
            async with session.get(f"{self._billpay.urls['gateway']}/api/bills", headers=headers) as answer:
                self.outcomes[str(answer.status)] += 1


@pytest.mark.parametrize("how", ["stopped", "killed"])
async def test_an_instance_that_goes_is_not_noticed(billpay: SystemUnderTest, how: str) -> None:
    first, second = billpay["billing"], billpay["billing-2"]
    assert len(await first.parts.resolver.resolve("billing")) == 2
    traffic = Traffic(billpay)
    await traffic.run(CALLS)
    assert answered(first) > 0
    assert answered(second) > 0

    async with asyncio.TaskGroup() as group:
        group.create_task(traffic.run(CALLS))
        if how == "stopped":
            await second.stop()
        else:  # its server is gone, and it deregisters nowhere
            assert second._server is not None
            await second._server.stop(0)
    total = 2 * USERS * CALLS
    assert traffic.outcomes == {"200": total * 2 // 3, "client": total // 3}
    assert len(await first.parts.resolver.resolve("billing")) == (1 if how == "stopped" else 2)


async def test_two_instances_on_one_file_pay_each_bill_once(billpay: SystemUnderTest) -> None:
    assert billpay["payment"].database is not billpay["payment-2"].database
    people = [await Billpay(billpay, WayToHorizon()).person() for _ in range(3)]
    bills = [(person, await person.bill()) for person in people for _ in range(2)]
    payments = await asyncio.gather(*(person.pay(bill) for person, bill in bills))
    assert [payment.status for payment in payments] == [PaymentStatus.SETTLED] * len(bills)
    for person, bill in bills:
        with as_user(person.token):
            async with asyncio.timeout(60):
                while not (found := await billpay.client(Billing).reconciliations(bill.id)):
                    await asyncio.sleep(0.05)
        assert len(found) == 1
