"""A bill's life: ``open → reserved → settled``, back to ``open`` when its payment fails, or ``cancelled``; and on to
``refunded`` when its payment is paid back. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final
from uuid import UUID

from reference.billpay.contracts.billing import (
    BillAlreadyPaid,
    BillCancelled,
    BillExpired,
    BillNotSettled,
    BillReserved,
    BillStatus,
    BillWasRefunded,
    Verdict,
)

_PAID: Final = (BillStatus.SETTLED, BillStatus.REFUNDING, BillStatus.REFUNDED)


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a bill stands. ``payment_id`` is the payment that holds it or has settled it, ``refund_id`` the refund that
    holds it or has paid that payment back."""

    status: BillStatus
    payment_id: UUID | None
    due_at: datetime
    refund_id: UUID | None = None


def reserve(bill: Standing, payment_id: UUID, now: datetime) -> Standing:
    """Holds the bill for one payment; the same payment may ask again, even when the bill has expired meanwhile.

    Raises:
        BillAlreadyPaid, BillCancelled, BillReserved, BillExpired: another payment, or none, may have it.
    """
    match bill.status:
        case BillStatus.SETTLED | BillStatus.REFUNDING:
            raise BillAlreadyPaid("This bill has been paid already. Nothing was taken from your wallet.")
        case BillStatus.REFUNDED:
            raise BillWasRefunded("This bill was paid and refunded. Nothing was taken from your wallet.")
        case BillStatus.CANCELLED:
            raise BillCancelled("This bill was cancelled. Nothing was taken from your wallet.")
        case BillStatus.RESERVED if bill.payment_id == payment_id:
            return bill
        case BillStatus.RESERVED:
            raise BillReserved("Another payment of this bill is under way. Nothing was taken from your wallet.")
        case BillStatus.OPEN if now > bill.due_at:
            raise BillExpired(
                f"This bill was due on {bill.due_at:%d %B %Y at %H:%M} UTC and has expired. "
                "Nothing was taken from your wallet."
            )
        case BillStatus.OPEN:
            return replace(bill, status=BillStatus.RESERVED, payment_id=payment_id)


def release(bill: Standing, payment_id: UUID) -> Standing:
    """Opens the bill again. Nothing happens where this payment does not hold it.

    Raises:
        BillAlreadyPaid: this payment has settled it, so there is nothing to give back.
    """
    if bill.payment_id != payment_id:
        return bill
    if bill.status in _PAID:
        raise BillAlreadyPaid("This payment has settled the bill")
    return replace(bill, status=BillStatus.OPEN, payment_id=None)


def settle(bill: Standing, payment_id: UUID) -> Standing:
    """The payment that holds the bill is final; saying so again does nothing.

    Raises:
        BillAlreadyPaid: the bill belongs to another payment, or to none: money has moved for nothing, and somebody has
            to look.
    """
    if bill.payment_id != payment_id or bill.status is BillStatus.CANCELLED:
        raise BillAlreadyPaid(f"The bill is {bill.status} and does not belong to payment {payment_id}")
    if bill.status in _PAID:
        return bill
    return replace(bill, status=BillStatus.SETTLED)


def cancel(bill: Standing) -> Standing:
    """Cancels an open bill; cancelling it again does nothing.

    Raises:
        BillAlreadyPaid, BillReserved: it is paid or about to be.
    """
    match bill.status:
        case BillStatus.SETTLED | BillStatus.REFUNDING | BillStatus.REFUNDED:
            raise BillAlreadyPaid
        case BillStatus.RESERVED:
            raise BillReserved("A payment of this bill is under way: it can be cancelled if that fails")
        case BillStatus.OPEN | BillStatus.CANCELLED:
            return replace(bill, status=BillStatus.CANCELLED)


def hold_refund(bill: Standing, payment_id: UUID, refund_id: UUID) -> Standing:
    """Says that the payment which settled the bill is going to be paid back; the same refund may ask again.

    Raises:
        BillNotSettled: it is not this payment that settled it, or another refund has it.
    """
    if bill.refund_id == refund_id and bill.status in (BillStatus.REFUNDING, BillStatus.REFUNDED):
        return bill
    if bill.status is not BillStatus.SETTLED or bill.payment_id != payment_id:
        raise BillNotSettled(f"The bill is {bill.status}, and not settled by this payment. Nothing was paid back.")
    return replace(bill, status=BillStatus.REFUNDING, refund_id=refund_id)


def release_refund(bill: Standing, refund_id: UUID) -> Standing:
    """The payment is not paid back. Nothing happens where this refund does not hold the bill.

    Raises:
        BillWasRefunded: this refund has been made, so there is no way back.
    """
    if bill.refund_id != refund_id:
        return bill
    if bill.status is BillStatus.REFUNDED:
        raise BillWasRefunded("This refund has been made")
    return replace(bill, status=BillStatus.SETTLED, refund_id=None)


def refund(bill: Standing, refund_id: UUID) -> Standing:
    """The payment has been paid back; saying so again does nothing.

    Raises:
        BillNotSettled: the refund does not hold the bill: money has moved for nothing, and somebody has to look.
    """
    if bill.refund_id != refund_id:
        raise BillNotSettled(f"The bill is {bill.status} and is not held by refund {refund_id}")
    return replace(bill, status=BillStatus.REFUNDED)


def discount(amount: int, percent: int) -> int:
    """What a coupon takes off, in whole stroops, rounded down: something is always left to be paid."""
    return amount * percent // 100


def reconcile(bill: Standing | None, billed: int | None, payment_id: UUID, paid: int) -> Verdict:
    """Compares a settled payment with its bill; amounts in stroops."""
    if bill is None:
        return Verdict.BILL_UNKNOWN
    if bill.payment_id != payment_id:
        return Verdict.OTHER_PAYMENT
    return Verdict.AGREED if billed == paid else Verdict.AMOUNT_DIFFERS
