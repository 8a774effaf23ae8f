"""Coupons on both databases: each is used once, whoever asks, however often, in whatever order."""

from __future__ import annotations

import asyncio
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
from reference.billpay.billing import coupons, handlers
from reference.billpay.contracts.billing import Bill, BillNotSettled, BillWasRefunded, NewBill, RefundHold, Reservation
from reference.billpay.contracts.coupons import (
    BillNotHeld,
    CouponClaim,
    CouponExists,
    CouponExpired,
    CouponStatus,
    CouponUsed,
    Deduction,
    NewCoupon,
)
from reference.billpay.contracts.ledger import DEMO_PROVIDERS

pytestmark = pytest.mark.anyio

ANN, EVE = Principal("ann", frozenset({"member"})), Principal("eve", frozenset({"member"}))


async def issue(
    db: Database, code: str = "WELCOME", percent: int = 10, *, days: int = 1, owner: str | None = None
) -> None:
    new = NewCoupon(code=code, percent=percent, expires_at=datetime.now(UTC) + timedelta(days=days), owner=owner)
    await db.run(lambda tx: coupons.create(new, tx))


async def held(db: Database, payment: UUID, amount: str = "12.5") -> Bill:
    """A bill that the payment holds."""
    new = NewBill(
        provider="Eko Gas",
        reference="INV-1",
        amount=Decimal(amount),
        payee=DEMO_PROVIDERS["Eko Gas"],
        due_at=datetime.now(UTC) + timedelta(days=1),
    )
    bill = await db.run(lambda tx: handlers.create(new, tx, ANN))
    return await db.run(lambda tx: handlers.reserve(bill.id, Reservation(payment_id=payment, owner="ann"), tx))


def claim(bill: Bill, payment: UUID, owner: str = "ann") -> CouponClaim:
    return CouponClaim(payment_id=payment, bill_id=bill.id, owner=owner)


async def reserve(db: Database, bill: Bill, payment: UUID, code: str = "WELCOME") -> Deduction:
    return await db.run(lambda tx: coupons.reserve(code, claim(bill, payment), tx))


async def give_back(db: Database, bill: Bill, payment: UUID) -> None:
    await db.run(lambda tx: coupons.give_back("WELCOME", claim(bill, payment), tx))


async def events(db: Database) -> list[str]:
    async with db.transaction(read_only=True) as tx:
        of_coupons = select(outbox.c.type).where(outbox.c.aggregatetype == "billing.coupons")
        types = await tx.scalars(of_coupons.order_by(outbox.c.seq))
    return [str(kind).rpartition(".")[2] for kind in types]


async def test_of_many_payments_at_once_one_gets_the_coupon(db: Database) -> None:
    await issue(db)
    payments = [uuid4() for _ in range(10)]
    bills = [await held(db, payment) for payment in payments]
    got = await asyncio.gather(
        *(reserve(db, bill, payment) for bill, payment in zip(bills, payments, strict=True)), return_exceptions=True
    )

    assert sum(isinstance(one, Deduction) for one in got) == 1
    assert sum(isinstance(one, CouponUsed) for one in got) == 9


async def test_each_change_is_made_once_however_often_it_is_asked_for(db: Database) -> None:
    await issue(db)
    payment = uuid4()
    bill = await held(db, payment, "0.0000009")
    for _ in range(2):
        assert await reserve(db, bill, payment) == Deduction(discount=Decimal(0), due=Decimal("0.0000009"))
    for _ in range(2):
        redeemed = await db.run(lambda tx: coupons.redeem("WELCOME", claim(bill, payment), tx))
        assert (redeemed.status, redeemed.payment_id) == (CouponStatus.REDEEMED, payment)
    for _ in range(2):
        await give_back(db, bill, payment)
    assert await events(db) == ["CouponRedeemed", "CouponReturned"]
    other = uuid4()
    await reserve(db, await held(db, other), other)
    await give_back(db, bill, payment)  # late: it is the other's now
    with pytest.raises(CouponUsed):
        await db.run(lambda tx: coupons.redeem("WELCOME", claim(bill, payment), tx))


async def test_a_reservation_that_comes_after_its_return_is_refused(db: Database) -> None:
    await issue(db)
    payment = uuid4()
    bill = await held(db, payment)
    await give_back(db, bill, payment)
    with pytest.raises(CouponUsed, match="cannot take it again"):
        await reserve(db, bill, payment)


async def test_only_who_holds_a_bill_of_theirs_gets_something_off_it(db: Database) -> None:
    await issue(db)
    payment = uuid4()
    bill = await held(db, payment)
    with pytest.raises(BillNotHeld):
        await reserve(db, bill, uuid4())
    with pytest.raises(BillNotHeld):
        await db.run(lambda tx: coupons.reserve("WELCOME", claim(bill, payment, "eve"), tx))
    await db.run(lambda tx: handlers.release(bill.id, Reservation(payment_id=payment, owner="ann"), tx))
    with pytest.raises(BillNotHeld):
        await reserve(db, bill, payment)


async def test_what_cannot_be_used_is_refused(db: Database) -> None:
    await issue(db, "EXPIRED", days=-1)
    await issue(db, "FOREVE", owner="eve")
    payment = uuid4()
    bill = await held(db, payment)
    with pytest.raises(CouponExpired):
        await reserve(db, bill, payment, "EXPIRED")
    for code in ("FOREVE", "NOSUCH"):
        with pytest.raises(NotFound):
            await reserve(db, bill, payment, code)
    with pytest.raises(CouponExists):
        await issue(db, "EXPIRED")
    assert (await db.run(lambda tx: coupons.read("FOREVE", tx, EVE), read_only=True)).percent == 10
    with pytest.raises(NotFound):
        await db.run(lambda tx: coupons.read("FOREVE", tx, ANN), read_only=True)
    page = await db.run(lambda tx: coupons.list_coupons(tx, PageRequest(limit=1)), read_only=True)
    assert ([one.code for one in page.items], page.next_cursor is None) == (["EXPIRED"], False)


async def test_a_refund_holds_a_settled_bill_and_is_told_of_what_comes_late(db: Database) -> None:
    payment, refund, other = uuid4(), uuid4(), uuid4()
    bill = await held(db, payment)
    hold = RefundHold(refund_id=refund, payment_id=payment, owner="ann")
    late = RefundHold(refund_id=other, payment_id=payment, owner="ann")
    with pytest.raises(BillNotSettled, match="reserved"):
        await db.run(lambda tx: handlers.hold_refund(bill.id, hold, tx))
    await db.run(lambda tx: handlers.settle(bill.id, Reservation(payment_id=payment, owner="ann"), tx))
    await db.run(lambda tx: handlers.release_refund(bill.id, late, tx))
    with pytest.raises(BillNotSettled, match="cannot take it again"):
        await db.run(lambda tx: handlers.hold_refund(bill.id, late, tx))
    for _ in range(2):
        assert (await db.run(lambda tx: handlers.hold_refund(bill.id, hold, tx))).status == "refunding"
    with pytest.raises(BillNotSettled):
        await db.run(lambda tx: handlers.refund(bill.id, late, tx))
    for _ in range(2):
        assert (await db.run(lambda tx: handlers.refund(bill.id, hold, tx))).status == "refunded"
    with pytest.raises(BillWasRefunded):
        await db.run(lambda tx: handlers.release_refund(bill.id, hold, tx))
