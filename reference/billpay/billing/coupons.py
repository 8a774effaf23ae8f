"""What billing does with coupons. One row a coupon, locked by whoever changes it: of many payments one gets it."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import or_, select
from sqlalchemy.exc import IntegrityError

from microkit.auth import Principal
from microkit.db import Transaction
from microkit.errors import NotFound
from microkit.page import Page, PageRequest
from reference.billpay.billing import domain
from reference.billpay.billing.tables import BillRow, CouponRow, ReturnedRow
from reference.billpay.contracts.billing import BillStatus
from reference.billpay.contracts.coupons import (
    BillNotHeld,
    Coupon,
    CouponClaim,
    CouponExists,
    CouponExpired,
    CouponRedeemed,
    CouponReturned,
    CouponStatus,
    CouponUsed,
    Deduction,
    NewCoupon,
)
from reference.billpay.contracts.money import from_stroops


async def create(body: NewCoupon, tx: Transaction) -> Coupon:
    row = CouponRow(
        code=body.code,
        percent=body.percent,
        owner=body.owner,
        status=CouponStatus.OPEN,
        expires_at=body.expires_at.astimezone(UTC),
    )
    tx.add(row)
    try:
        await tx.flush()
    except IntegrityError:
        raise CouponExists from None
    return _coupon(row)


async def list_coupons(tx: Transaction, page: PageRequest) -> Page[Coupon]:
    rows, cursor = await tx.page(select(CouponRow), page, by=(CouponRow.code,))
    return Page(items=[_coupon(row) for row in rows], next_cursor=cursor)


async def read(code: str, tx: Transaction, caller: Principal) -> Coupon:
    return _coupon(await _usable(tx, code, caller.subject))


async def reserve(code: str, body: CouponClaim, tx: Transaction) -> Deduction:
    """The bill is locked first, as everywhere: it has one payment at a time, so that two never wait for each other."""
    bill = await tx.find(BillRow, BillRow.id == body.bill_id, BillRow.owner == body.owner, for_update=True)
    if bill is None or bill.payment_id != body.payment_id or bill.status != BillStatus.RESERVED:
        raise BillNotHeld
    if await tx.get(ReturnedRow, body.payment_id) is not None:
        raise CouponUsed("This payment has given the coupon back and cannot take it again")
    row = await _usable(tx, code, body.owner, for_update=True)
    if row.payment_id != body.payment_id:
        if row.status != CouponStatus.OPEN:
            raise CouponUsed(f"The coupon {code} has been used. Nothing was taken from your wallet.")
        if row.expires_at < datetime.now(UTC):
            raise CouponExpired(
                f"The coupon {code} expired on {row.expires_at:%d %B %Y}. Nothing was taken from your wallet."
            )
        row.status, row.payment_id = CouponStatus.RESERVED, body.payment_id
        bill.discount, bill.coupon = domain.discount(bill.amount, row.percent), code
    return Deduction(discount=from_stroops(bill.discount), due=from_stroops(bill.amount - bill.discount))


async def give_back(code: str, body: CouponClaim, tx: Transaction) -> None:
    bill = await tx.find(BillRow, BillRow.id == body.bill_id, BillRow.owner == body.owner, for_update=True)
    row = await tx.find(CouponRow, CouponRow.code == code, for_update=True)
    if row is not None and row.payment_id == body.payment_id:
        row.status, row.payment_id = CouponStatus.OPEN, None
        # Of a bill that was paid the discount stays on record: it is what was paid that was refunded.
        if bill is not None and bill.status == BillStatus.RESERVED and bill.payment_id == body.payment_id:
            bill.discount, bill.coupon = 0, None
        tx.publish(CouponReturned(code=code, payment_id=body.payment_id, bill_id=body.bill_id))
    if await tx.get(ReturnedRow, body.payment_id) is None:
        tx.add(ReturnedRow(payment_id=body.payment_id, code=code, returned_at=datetime.now(UTC)))


async def redeem(code: str, body: CouponClaim, tx: Transaction) -> Coupon:
    row = await tx.find(CouponRow, CouponRow.code == code, for_update=True)
    if row is None:
        raise NotFound("There is no such coupon")
    if row.payment_id != body.payment_id:
        raise CouponUsed(f"The coupon is {row.status}, and not by payment {body.payment_id}")
    if row.status != CouponStatus.REDEEMED:
        row.status = CouponStatus.REDEEMED
        tx.publish(CouponRedeemed(code=code, payment_id=body.payment_id, bill_id=body.bill_id))
    return _coupon(row)


async def _usable(tx: Transaction, code: str, owner: str, *, for_update: bool = False) -> CouponRow:
    theirs = or_(CouponRow.owner.is_(None), CouponRow.owner == owner)
    row = await tx.find(CouponRow, CouponRow.code == code, theirs, for_update=for_update)
    if row is None:
        raise NotFound("There is no such coupon")
    return row


def _coupon(row: CouponRow) -> Coupon:
    return Coupon(
        code=row.code,
        percent=row.percent,
        owner=row.owner,
        status=CouponStatus(row.status),
        payment_id=row.payment_id,
        expires_at=row.expires_at,
    )
