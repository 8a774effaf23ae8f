"""Paying a bill: reserve it, pay, settle it; and back again where it cannot be paid."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from microkit.db import Transaction
from microkit.errors import NotFound
from microkit.saga import Retry, Saga, StepContext, compensatable, pivot, retriable
from reference.billpay.contracts.billing import Billing, Reservation
from reference.billpay.contracts.coupons import CouponClaim, Coupons
from reference.billpay.contracts.money import to_stroops
from reference.billpay.contracts.payment import PaymentFailed, PaymentSettled, PaymentStarted, PaymentStatus
from reference.billpay.payment import domain
from reference.billpay.payment.cashier import Cashier
from reference.billpay.payment.domain import Order, PayBill
from reference.billpay.payment.tables import PaymentRow


async def start_payment(state: PayBill, tx: Transaction) -> None:
    """Says that the payment is under way."""
    tx.publish(PaymentStarted(payment_id=state.payment_id, bill_id=state.bill_id, owner=state.owner))


async def fail_payment(state: PayBill, tx: Transaction, step: StepContext) -> None:
    """The payment has failed; tells the payer why."""
    payment = await _payment(tx, state)
    payment.status, payment.updated_at = PaymentStatus.FAILED, datetime.now(UTC)
    payment.reason = step.failure.reason if step.failure else "The payment was not made."
    tx.publish(
        PaymentFailed(payment_id=state.payment_id, bill_id=state.bill_id, owner=state.owner, reason=payment.reason)
    )


async def reserve_bill(state: PayBill, billing: Billing) -> dict[str, Any]:
    """Holds the bill for this payment and learns what is due to whom."""
    bill = await billing.reserve(state.bill_id, _reservation(state))
    return {"amount": bill.amount, "payee": bill.payee, "reference": bill.reference}


async def release_bill(state: PayBill, billing: Billing) -> None:
    """Gives the bill back, or makes sure that a reservation on its way comes too late."""
    with suppress(NotFound):  # there never was such a bill: nothing to give back
        await billing.release(state.bill_id, _reservation(state))


def has_coupon(state: PayBill) -> bool:
    """Whether the payer has named a coupon."""
    return bool(state.coupon)


async def reserve_coupon(state: PayBill, coupons: Coupons) -> dict[str, Any]:
    """Holds the coupon for this payment and learns what is left to be paid."""
    return {"amount": (await coupons.reserve(state.coupon, _claim(state))).due}


async def return_coupon(state: PayBill, coupons: Coupons) -> None:
    """Gives the coupon back, or makes sure that a reservation on its way comes too late."""
    await coupons.give_back(state.coupon, _claim(state))


async def submit_payment(state: PayBill, cashier: Cashier) -> dict[str, Any]:
    """The point of no return: a ledger takes the payment, or the payment is refused."""
    if state.amount is None or state.payee is None:
        raise LookupError(f"payment {state.payment_id} came here without its bill")
    memo = domain.memo(state.reference, state.payment_id)
    order = Order(state.payment_id, state.owner, state.payee, to_stroops(state.amount), memo)
    done = await cashier.pay(order)
    return {"transaction_hash": done.hash, "ledger": done.ledger}


async def redeem_coupon(state: PayBill, coupons: Coupons) -> None:
    """The coupon is used up."""
    await coupons.redeem(state.coupon, _claim(state))


async def settle_bill(state: PayBill, billing: Billing) -> None:
    """The bill is paid."""
    await billing.settle(state.bill_id, _reservation(state))


async def finish_payment(state: PayBill, tx: Transaction) -> None:
    """The payment is final; whoever reconciles hears of it."""
    if state.amount is None:
        raise LookupError(f"payment {state.payment_id} came here without its bill")
    payment = await _payment(tx, state)
    payment.status, payment.updated_at = PaymentStatus.SETTLED, datetime.now(UTC)
    payment.transaction_hash, payment.ledger = state.transaction_hash, state.ledger
    tx.publish(
        PaymentSettled(
            payment_id=state.payment_id,
            bill_id=state.bill_id,
            owner=state.owner,
            amount=state.amount,
            transaction_hash=state.transaction_hash,
            ledger=state.ledger,
        )
    )


def _reservation(state: PayBill) -> Reservation:
    return Reservation(payment_id=state.payment_id, owner=state.owner)


def _claim(state: PayBill) -> CouponClaim:
    return CouponClaim(payment_id=state.payment_id, bill_id=state.bill_id, owner=state.owner)


async def _payment(tx: Transaction, state: PayBill) -> PaymentRow:
    row = await tx.get(PaymentRow, state.payment_id)
    if row is None:
        raise LookupError(f"payment {state.payment_id} has vanished")
    return row


# A network may be away for hours before it is stuck. Payments of one wallet wait for each other beside that.
_PAY = pivot(submit_payment, timeout=90, retry=Retry(attempts=2000, initial=0.5, maximum=10))

pay_bill_1 = Saga(
    "pay-bill",
    PayBill,
    [
        compensatable(start_payment, undo=fail_payment),
        compensatable(reserve_bill, undo=release_bill, timeout=5),
        _PAY,
        retriable(settle_bill, timeout=5),
        retriable(finish_payment),
    ],
    version=1,
)
"""Without coupons. It is offered until the last payment that began with it has ended; no other begins with it."""

pay_bill = Saga(
    "pay-bill",
    PayBill,
    [
        compensatable(start_payment, undo=fail_payment),
        compensatable(reserve_bill, undo=release_bill, timeout=5),
        compensatable(reserve_coupon, undo=return_coupon, timeout=5, when=has_coupon),
        _PAY,
        retriable(redeem_coupon, timeout=5, when=has_coupon),
        retriable(settle_bill, timeout=5),
        retriable(finish_payment),
    ],
    version=2,
    key=lambda state: domain.lock_of(state.bill_id),
)
