"""Paying a settled payment back: once, out of billpay's own wallet, with the bill and the coupon as they should be."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from uuid import UUID, uuid4

import pytest

from microkit.errors import NotFound, RemoteProblem
from microkit.testing.system import as_user
from reference.billpay.contracts.billing import BillStatus
from reference.billpay.contracts.coupons import CouponStatus
from reference.billpay.contracts.payment import (
    NewRefund,
    NotSettled,
    Payment,
    Payments,
    PaymentStatus,
    Refund,
    RefundWallet,
)
from reference.billpay.ledger.domain import BASE_FEE, TOTAL_COINS
from tests.reference.billpay.people import Billpay, Person, as_told

pytestmark = pytest.mark.anyio

XLM = 10_000_000
CAUSE = NewRefund(cause="The meter was read wrongly.")


async def ask(billpay: Billpay, payment_id: UUID) -> Refund:
    with as_user(billpay.admin):
        return await billpay.client(Payments).refund(payment_id, CAUSE)


async def end_of(billpay: Billpay, person: Person, payment: Payment) -> tuple[Payment, Refund]:
    """The payment and its refund, when that has come to its end."""
    async with asyncio.timeout(180):
        while True:
            with as_user(person.token):
                refund = await billpay.client(Payments).read_refund(payment.id)
                found = await billpay.client(Payments).read(payment.id)
            if refund.status in (PaymentStatus.SETTLED, PaymentStatus.FAILED):
                return found, refund
            await asyncio.sleep(0.05)


async def house(billpay: Billpay) -> str:
    """The address of billpay's own wallet, with money in it."""
    return (await as_told(billpay.admin, lambda: billpay.client(RefundWallet).open())).address


async def test_a_settled_payment_is_paid_back_once_however_often_it_is_asked_for(billpay: Billpay) -> None:
    ann, own = await billpay.person(), await house(billpay)
    assert ann.wallet is not None
    code = await billpay.coupon(20)
    bill = await ann.bill("10")
    payment = await ann.pay(bill, coupon=code)
    hers, ours = await billpay.balance(ann.wallet.address), await billpay.balance(own)

    asked = await asyncio.gather(*(ask(billpay, payment.id) for _ in range(6)))
    paid_back, refund = await end_of(billpay, ann, payment)
    again = await ask(billpay, payment.id)

    assert {one.id for one in asked} == {refund.id} == {again.id}
    assert (paid_back.status, refund.status, refund.amount) == (
        PaymentStatus.REFUNDED,
        PaymentStatus.SETTLED,
        Decimal(8),
    )
    assert (refund.cause, refund.reason) == (CAUSE.cause, None)
    assert await billpay.balance(ann.wallet.address) - hers == 8 * XLM
    assert ours - await billpay.balance(own) == 8 * XLM + BASE_FEE
    refunded = await billpay.status_of(ann, bill, BillStatus.REFUNDED)
    assert refunded.payment_id == payment.id
    assert (await billpay.read_coupon(code)).status is CouponStatus.OPEN
    assert await billpay.all_money() == TOTAL_COINS

    third = await ann.pay(bill)
    assert third.reason == "This bill was paid and refunded. Nothing was taken from your wallet."


async def test_a_refund_whose_answers_are_lost_is_made_once(billpay: Billpay) -> None:
    ann, own = await billpay.person(), await house(billpay)
    payment = await ann.pay(await ann.bill("5"))
    ours = await billpay.balance(own)
    billpay.way.clear()
    billpay.way.lose_answer = lambda number: number <= 2
    await ask(billpay, payment.id)
    _, refund = await end_of(billpay, ann, payment)

    assert refund.status is PaymentStatus.SETTLED
    assert len(set(billpay.way.submitted)) == 1, "the identical envelope, each time"
    assert ours - await billpay.balance(own) == 5 * XLM + BASE_FEE


async def test_what_billpay_cannot_pay_back_stays_settled_and_may_be_asked_for_again(billpay: Billpay) -> None:
    rich, own = await billpay.person(), await house(billpay)
    bill = await rich.bill("9000", payee=await billpay.new_account())
    payment = await rich.pay(bill)
    while await billpay.balance(own) > 9000 * XLM:  # something else has been paid back
        other = await billpay.person()
        paid = await other.pay(await other.bill("2000", payee=await billpay.new_account()))
        await ask(billpay, paid.id)
        await end_of(billpay, other, paid)
    first = await ask(billpay, payment.id)
    still, refund = await end_of(billpay, rich, payment)

    assert (still.status, refund.status, refund.reason) == (
        PaymentStatus.SETTLED,
        PaymentStatus.FAILED,
        "Billpay's own wallet cannot pay this back. Nothing was paid.",
    )
    assert (await billpay.status_of(rich, bill, BillStatus.SETTLED)).payment_id == payment.id
    second = await ask(billpay, payment.id)
    assert second.id != first.id
    await end_of(billpay, rich, payment)


async def test_only_a_settled_payment_is_paid_back_and_only_an_administrator_may_ask(billpay: Billpay) -> None:
    ann, eve = await billpay.person(), await billpay.person()
    await house(billpay)
    failed = await ann.pay(await ann.bill("20000"))
    assert failed.status is PaymentStatus.FAILED
    with pytest.raises(NotSettled, match="The payment is failed"):
        await ask(billpay, failed.id)
    with pytest.raises(NotFound):
        await ask(billpay, uuid4())
    payment = await ann.pay(await ann.bill())
    for person in (ann, eve):
        with as_user(person.token), pytest.raises(RemoteProblem, match="403: This needs the role admin"):
            await billpay.client(Payments).refund(payment.id, CAUSE)
    with as_user(ann.token), pytest.raises(NotFound, match="This payment is not paid back"):
        await billpay.client(Payments).read_refund(payment.id)
    await ask(billpay, payment.id)
    await end_of(billpay, ann, payment)
    with as_user(eve.token), pytest.raises(NotFound):
        await billpay.client(Payments).read_refund(payment.id)
