"""Paying with coupons: held before the payment, used up by it, given back when it is not made; never used twice."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from decimal import Decimal

import pytest

from microkit.testing.system import as_user
from reference.billpay.contracts.billing import Billing, BillStatus, Verdict
from reference.billpay.contracts.coupons import CouponStatus
from reference.billpay.contracts.payment import PaymentStatus
from reference.billpay.ledger.domain import TOTAL_COINS
from tests.reference.billpay.people import Billpay

pytestmark = pytest.mark.anyio

XLM = 10_000_000


async def test_a_coupon_takes_its_share_off_and_is_used_up(billpay: Billpay) -> None:
    ann, payee = await billpay.person(), await billpay.new_account()
    before, code = await billpay.balance(payee), await billpay.coupon(20)
    bill = await ann.bill("10", payee=payee)
    payment = await ann.pay(bill, coupon=code)

    assert (payment.status, payment.reason, payment.coupon) == (PaymentStatus.SETTLED, None, code)
    assert payment.amount == Decimal(8)
    assert await billpay.balance(payee) - before == 8 * XLM
    settled = await billpay.status_of(ann, bill, BillStatus.SETTLED)
    assert (settled.amount, settled.discount, settled.coupon) == (Decimal(10), Decimal(2), code)
    coupon = await billpay.read_coupon(code)
    assert (coupon.status, coupon.payment_id) == (CouponStatus.REDEEMED, payment.id)
    async with asyncio.timeout(60):
        while True:
            with as_user(ann.token):
                books = await billpay.client(Billing).reconciliations(bill.id)
            if books:
                break
            await asyncio.sleep(0.02)
    assert [(one.verdict, one.paid, one.billed) for one in books] == [(Verdict.AGREED, Decimal(8), Decimal(8))]
    assert await billpay.all_money() == TOTAL_COINS


async def test_of_many_payments_with_one_coupon_at_once_exactly_one_uses_it(billpay: Billpay) -> None:
    people = [await billpay.person() for _ in range(4)]
    code, payee = await billpay.coupon(50), await billpay.new_account()
    before = await billpay.balance(payee)
    bills = [(person, await person.bill("4", payee=payee)) for person in people for _ in range(2)]
    ended = await asyncio.gather(*(person.pay(bill, coupon=code) for person, bill in bills))

    settled = [payment for payment in ended if payment.status is PaymentStatus.SETTLED]
    assert len(settled) == 1
    assert {payment.reason for payment in ended if payment.status is PaymentStatus.FAILED} == {
        f"The coupon {code} has been used. Nothing was taken from your wallet."
    }
    assert await billpay.balance(payee) - before == 2 * XLM
    assert (await billpay.read_coupon(code)).payment_id == settled[0].id
    for person, bill in bills:
        if bill.id != settled[0].bill_id:
            assert (await billpay.status_of(person, bill, BillStatus.OPEN)).discount == 0


async def test_a_payment_that_is_not_made_gives_its_coupon_back_and_another_can_use_it(billpay: Billpay) -> None:
    ann = await billpay.person()
    code = await billpay.coupon(10)
    dear = await ann.bill("20000")
    payment = await ann.pay(dear, coupon=code)

    assert payment.status is PaymentStatus.FAILED
    assert payment.reason is not None
    assert "This payment needs 18000" in payment.reason
    assert (await billpay.read_coupon(code)).status is CouponStatus.OPEN
    opened = await billpay.status_of(ann, dear, BillStatus.OPEN)
    assert (opened.discount, opened.coupon) == (Decimal(0), None)
    again = await ann.pay(await ann.bill("10"), coupon=code)
    assert (again.status, again.amount) == (PaymentStatus.SETTLED, Decimal(9))


async def test_a_coupon_that_has_expired_or_is_somebody_elses_or_none_is_refused(billpay: Billpay) -> None:
    ann, eve = await billpay.person(), await billpay.person()
    old = await billpay.coupon(valid_for=-timedelta(hours=1))
    hers = await billpay.coupon(owner=eve)
    for code, reason in ((old, f"The coupon {old} expired on "), (hers, "There is no such coupon")):
        bill = await ann.bill()
        payment = await ann.pay(bill, coupon=code)
        assert payment.status is PaymentStatus.FAILED
        assert reason in (payment.reason or "")
        assert (await billpay.status_of(ann, bill, BillStatus.OPEN)).payment_id is None
    assert (await billpay.read_coupon(hers)).status is CouponStatus.OPEN
    assert not billpay.way.submitted
