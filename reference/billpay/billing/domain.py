"""A bill's life: ``open → reserved → settled``, back to ``open`` when its payment fails, or ``cancelled``. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

from reference.billpay.contracts.billing import (
    BillAlreadyPaid,
    BillCancelled,
    BillExpired,
    BillReserved,
    BillStatus,
    Verdict,
)


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a bill stands. ``payment_id`` is the payment that holds it or has settled it."""

    status: BillStatus
    payment_id: UUID | None
    due_at: datetime


def reserve(bill: Standing, payment_id: UUID, now: datetime) -> Standing:
    """Holds the bill for one payment; the same payment may ask again, even when the bill has expired meanwhile.

    Raises:
        BillAlreadyPaid, BillCancelled, BillReserved, BillExpired: another payment, or none, may have it.
    """
    match bill.status:
        case BillStatus.SETTLED:
            raise BillAlreadyPaid("This bill has been paid already. Nothing was taken from your wallet.")
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
    if bill.status is BillStatus.SETTLED:
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
    return replace(bill, status=BillStatus.SETTLED)


def cancel(bill: Standing) -> Standing:
    """Cancels an open bill; cancelling it again does nothing.

    Raises:
        BillAlreadyPaid, BillReserved: it is paid or about to be.
    """
    match bill.status:
        case BillStatus.SETTLED:
            raise BillAlreadyPaid
        case BillStatus.RESERVED:
            raise BillReserved("A payment of this bill is under way: it can be cancelled if that fails")
        case BillStatus.OPEN | BillStatus.CANCELLED:
            return replace(bill, status=BillStatus.CANCELLED)


def reconcile(bill: Standing | None, billed: int | None, payment_id: UUID, paid: int) -> Verdict:
    """Compares a settled payment with its bill; amounts in stroops."""
    if bill is None:
        return Verdict.BILL_UNKNOWN
    if bill.payment_id != payment_id:
        return Verdict.OTHER_PAYMENT
    return Verdict.AGREED if billed == paid else Verdict.AMOUNT_DIFFERS
