"""Paying a settled payment back: out of billpay's own wallet, to the wallet that it came from, once.

On a ledger nothing is taken back: the provider has the money. Billpay pays, and settles with the provider elsewhere.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from microkit.db import Transaction
from microkit.errors import NotFound
from microkit.saga import Retry, Saga, StepContext, StepRefused, compensatable, pivot, retriable
from reference.billpay.contracts.billing import Billing, RefundHold
from reference.billpay.contracts.coupons import CouponClaim, Coupons
from reference.billpay.contracts.money import to_stroops
from reference.billpay.contracts.payment import PaymentRefunded, PaymentStatus, RefundFailed, RefundStarted
from reference.billpay.payment import domain
from reference.billpay.payment.cashier import Cashier
from reference.billpay.payment.domain import REFUNDS, Order, RefundPayment
from reference.billpay.payment.tables import PaymentRow


async def start_refund(state: RefundPayment, tx: Transaction) -> None:
    """Says that the payment is being paid back."""
    payment, refund = await _rows(tx, state)
    payment.status, payment.updated_at = PaymentStatus.REFUNDING, datetime.now(UTC)
    tx.publish(
        RefundStarted(
            payment_id=state.payment_id, refund_id=state.refund_id, owner=state.owner, cause=refund.cause or ""
        )
    )


async def fail_refund(state: RefundPayment, tx: Transaction, step: StepContext) -> None:
    """It could not be paid back; tells why."""
    payment, refund = await _rows(tx, state)
    payment.status = PaymentStatus.SETTLED
    refund.status, refund.reason = PaymentStatus.FAILED, step.failure.reason if step.failure else "It was not made."
    payment.updated_at = refund.updated_at = datetime.now(UTC)
    tx.publish(
        RefundFailed(payment_id=state.payment_id, refund_id=state.refund_id, owner=state.owner, reason=refund.reason)
    )


async def hold_bill(state: RefundPayment, billing: Billing) -> None:
    """The bill is no longer settled for good."""
    await billing.hold_refund(state.bill_id, _hold(state))


async def release_bill(state: RefundPayment, billing: Billing) -> None:
    """The bill is settled as before."""
    with suppress(NotFound):
        await billing.release_refund(state.bill_id, _hold(state))


async def pay_back(state: RefundPayment, cashier: Cashier) -> dict[str, Any]:
    """The point of no return: a ledger takes the refund, or it is refused."""
    memo = domain.memo("", state.payment_id)
    order = Order(state.refund_id, REFUNDS, state.address, to_stroops(state.amount), memo)
    try:
        done = await cashier.pay(order)
    except StepRefused as error:  # its words are for a payer about their own wallet
        raise StepRefused("Billpay's own wallet cannot pay this back. Nothing was paid.", type=error.type) from error
    return {"transaction_hash": done.hash, "ledger": done.ledger}


async def refund_bill(state: RefundPayment, billing: Billing) -> None:
    """The bill is no longer paid."""
    await billing.refund(state.bill_id, _hold(state))


def has_coupon(state: RefundPayment) -> bool:
    """Whether the payment was made with a coupon."""
    return bool(state.coupon)


async def return_coupon(state: RefundPayment, coupons: Coupons) -> None:
    """The coupon can be used again."""
    claim = CouponClaim(payment_id=state.payment_id, bill_id=state.bill_id, owner=state.owner)
    await coupons.give_back(state.coupon, claim)


async def finish_refund(state: RefundPayment, tx: Transaction) -> None:
    """The payment is refunded, and its payer hears of it."""
    payment, refund = await _rows(tx, state)
    payment.status, refund.status = PaymentStatus.REFUNDED, PaymentStatus.SETTLED
    refund.transaction_hash, refund.ledger = state.transaction_hash, state.ledger
    payment.updated_at = refund.updated_at = datetime.now(UTC)
    tx.publish(
        PaymentRefunded(
            payment_id=state.payment_id,
            refund_id=state.refund_id,
            bill_id=state.bill_id,
            owner=state.owner,
            amount=state.amount,
            transaction_hash=state.transaction_hash,
            ledger=state.ledger,
        )
    )


def _hold(state: RefundPayment) -> RefundHold:
    return RefundHold(refund_id=state.refund_id, payment_id=state.payment_id, owner=state.owner)


async def _rows(tx: Transaction, state: RefundPayment) -> tuple[PaymentRow, PaymentRow]:
    """The payment and its refund."""
    payment, refund = await tx.get(PaymentRow, state.payment_id), await tx.get(PaymentRow, state.refund_id)
    if payment is None or refund is None:
        raise LookupError(f"payment {state.payment_id} or its refund {state.refund_id} has vanished")
    return payment, refund


refund_payment = Saga(
    "refund-payment",
    RefundPayment,
    [
        compensatable(start_refund, undo=fail_refund),
        compensatable(hold_bill, undo=release_bill, timeout=5),
        # As long as a payment may take, and for the same reason.
        pivot(pay_back, timeout=90, retry=Retry(attempts=2000, initial=0.5, maximum=10)),
        retriable(refund_bill, timeout=5),
        retriable(return_coupon, timeout=5, when=has_coupon),
        retriable(finish_refund),
    ],
    key=lambda state: domain.lock_of(state.bill_id),
)
