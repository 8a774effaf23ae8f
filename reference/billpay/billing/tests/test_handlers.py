"""Billing's handlers on both databases."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID, uuid4

import pytest
from sqlalchemy import select

from microkit.auth import Principal
from microkit.db import Database
from microkit.errors import NotFound
from microkit.outbox.tables import outbox
from microkit.page import PageRequest
from reference.billpay.billing import handlers
from reference.billpay.contracts.billing import (
    Bill,
    BillAlreadyPaid,
    BillReserved,
    BillStatus,
    NewBill,
    Reservation,
    Verdict,
)
from reference.billpay.contracts.ledger import DEMO_PROVIDERS
from reference.billpay.contracts.payment import PaymentSettled

pytestmark = pytest.mark.anyio

ANN, EVE = Principal("ann", frozenset({"member"})), Principal("eve", frozenset({"member"}))


async def create(db: Database, caller: Principal = ANN, amount: str = "12.5") -> Bill:
    new = NewBill(
        provider="Eko Gas",
        reference="INV-1",
        amount=Decimal(amount),
        payee=DEMO_PROVIDERS["Eko Gas"],
        due_at=datetime.now(UTC) + timedelta(days=1),
    )
    return await db.run(lambda tx: handlers.create(new, tx, caller))


async def reserve(db: Database, bill: Bill, payment: UUID) -> Bill:
    return await db.run(lambda tx: handlers.reserve(bill.id, Reservation(payment_id=payment, owner="ann"), tx))


async def release(db: Database, bill: Bill, payment: UUID) -> Bill:
    return await db.run(lambda tx: handlers.release(bill.id, Reservation(payment_id=payment, owner="ann"), tx))


async def settle(db: Database, bill: Bill, payment: UUID) -> Bill:
    return await db.run(lambda tx: handlers.settle(bill.id, Reservation(payment_id=payment, owner="ann"), tx))


async def read(db: Database, bill: Bill, caller: Principal = ANN) -> Bill:
    return await db.run(lambda tx: handlers.read(bill.id, tx, caller), read_only=True)


async def events(db: Database) -> list[str]:
    """The types of the events in the outbox, in their order."""
    async with db.transaction(read_only=True) as tx:
        types = await tx.scalars(select(outbox.c.type).order_by(outbox.c.seq))
    return [str(kind).rpartition(".")[2] for kind in types]


async def test_a_bill_comes_back_as_it_was_entered_to_the_last_stroop(db: Database) -> None:
    bill = await create(db, amount="12345678901.1234567")
    assert await read(db, bill) == bill
    assert bill.amount == Decimal("12345678901.1234567")
    assert (bill.status, bill.owner, bill.payment_id) == (BillStatus.OPEN, "ann", None)
    assert await events(db) == ["BillCreated"]


async def test_a_bill_of_somebody_else_is_not_there(db: Database) -> None:
    bill = await create(db)
    with pytest.raises(NotFound):
        await read(db, bill, EVE)
    with pytest.raises(NotFound):
        await db.run(lambda tx: handlers.cancel(bill.id, tx, EVE))
    with pytest.raises(NotFound):
        await db.run(lambda tx: handlers.reconciliations(bill.id, tx, EVE), read_only=True)
    foreign = Reservation(payment_id=uuid4(), owner="eve")
    with pytest.raises(NotFound):
        await db.run(lambda tx: handlers.reserve(bill.id, foreign, tx))
    everything = await db.run(lambda tx: handlers.list_bills(tx, EVE, PageRequest()), read_only=True)
    assert everything.items == []


async def test_bills_are_listed_newest_first_page_by_page_and_by_status(db: Database) -> None:
    bills = [await create(db) for _ in range(5)]
    await db.run(lambda tx: handlers.cancel(bills[2].id, tx, ANN))
    first = await db.run(lambda tx: handlers.list_bills(tx, ANN, PageRequest(limit=3)), read_only=True)
    rest = PageRequest(limit=3, cursor=first.next_cursor)
    second = await db.run(lambda tx: handlers.list_bills(tx, ANN, rest), read_only=True)
    assert [bill.id for bill in first.items + second.items] == [bill.id for bill in reversed(bills)]
    assert second.next_cursor is None
    cancelled = await db.run(
        lambda tx: handlers.list_bills(tx, ANN, PageRequest(), BillStatus.CANCELLED), read_only=True
    )
    assert [bill.id for bill in cancelled.items] == [bills[2].id]


async def test_of_many_payments_at_once_one_gets_the_bill(db: Database) -> None:
    bill = await create(db)
    payments = [uuid4() for _ in range(10)]
    got = await asyncio.gather(*(reserve(db, bill, payment) for payment in payments), return_exceptions=True)
    holders = [one for one in got if isinstance(one, Bill)]
    assert len(holders) == 1
    assert all(isinstance(one, BillReserved) for one in got if not isinstance(one, Bill))
    assert (await read(db, bill)).payment_id == holders[0].payment_id


async def test_each_change_is_told_once_however_often_it_is_asked_for(db: Database) -> None:
    bill, payment = await create(db), uuid4()
    for _ in range(2):
        await reserve(db, bill, payment)
    for _ in range(2):
        await settle(db, bill, payment)
    other, gone = await create(db), uuid4()
    await reserve(db, other, gone)
    for _ in range(2):
        await release(db, other, gone)
    for _ in range(2):
        await db.run(lambda tx: handlers.cancel(other.id, tx, ANN))
    assert await events(db) == ["BillCreated", "BillSettled", "BillCreated", "BillReleased", "BillWasCancelled"]


async def test_a_reservation_that_comes_after_its_release_is_refused(db: Database) -> None:
    bill, late = await create(db), uuid4()
    await release(db, bill, late)
    with pytest.raises(BillReserved):
        await reserve(db, bill, late)
    assert (await reserve(db, bill, uuid4())).status is BillStatus.RESERVED


async def test_a_settled_bill_is_not_given_back(db: Database) -> None:
    bill, payment = await create(db), uuid4()
    await reserve(db, bill, payment)
    await settle(db, bill, payment)
    with pytest.raises(BillAlreadyPaid):
        await release(db, bill, payment)


@pytest.mark.parametrize(
    ("paid", "holder", "verdict"),
    [("12.5", True, Verdict.AGREED), ("12.4", True, Verdict.AMOUNT_DIFFERS), ("12.5", False, Verdict.OTHER_PAYMENT)],
)
async def test_a_settled_payment_is_compared_and_a_difference_is_logged(
    db: Database, caplog: pytest.LogCaptureFixture, paid: str, holder: bool, verdict: Verdict
) -> None:
    bill, payment = await create(db), uuid4()
    await reserve(db, bill, payment if holder else uuid4())
    event = PaymentSettled(
        payment_id=payment, bill_id=bill.id, owner="ann", amount=Decimal(paid), transaction_hash="ab" * 32, ledger=9
    )
    with caplog.at_level(logging.ERROR):
        await db.run(lambda tx: handlers.reconcile(event, tx))
    assert bool(caplog.records) is (verdict is not Verdict.AGREED)
    (found,) = await db.run(lambda tx: handlers.reconciliations(bill.id, tx, ANN), read_only=True)
    assert (found.verdict, found.paid, found.billed) == (verdict, Decimal(paid), Decimal("12.5"))


async def test_a_payment_of_a_bill_that_nobody_knows_is_logged(db: Database, caplog: pytest.LogCaptureFixture) -> None:
    event = PaymentSettled(
        payment_id=uuid4(), bill_id=uuid4(), owner="ann", amount=Decimal(1), transaction_hash="ab" * 32, ledger=9
    )
    with caplog.at_level(logging.ERROR):
        await db.run(lambda tx: handlers.reconcile(event, tx))
    assert caplog.records
