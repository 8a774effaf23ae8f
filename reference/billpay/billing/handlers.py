"""What billing does when it is asked, and when a payment has settled."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from uuid import UUID, uuid4

from sqlalchemy import select

from microkit.auth import Principal
from microkit.db import Transaction
from microkit.errors import NotFound
from microkit.page import Page, PageRequest
from reference.billpay.billing import domain
from reference.billpay.billing.domain import Standing
from reference.billpay.billing.tables import BillRow, ReconciliationRow, ReleasedRow
from reference.billpay.contracts.billing import (
    Bill,
    BillCreated,
    BillNotSettled,
    BillRefunded,
    BillReleased,
    BillReserved,
    BillSettled,
    BillStatus,
    BillWasCancelled,
    NewBill,
    Reconciliation,
    RefundHold,
    Reservation,
    Verdict,
)
from reference.billpay.contracts.money import from_stroops, to_stroops
from reference.billpay.contracts.payment import PaymentSettled

_log = logging.getLogger("reference.billpay.billing")


async def create(body: NewBill, tx: Transaction, caller: Principal) -> Bill:
    row = BillRow(
        id=uuid4(),
        owner=caller.subject,
        provider=body.provider,
        reference=body.reference,
        amount=to_stroops(body.amount),
        payee=body.payee,
        due_at=body.due_at.astimezone(UTC),
        status=BillStatus.OPEN,
        payment_id=None,
        discount=0,
        created_at=datetime.now(UTC),
    )
    tx.add(row)
    tx.publish(BillCreated(bill_id=row.id, owner=row.owner, amount=from_stroops(row.amount)))
    return _bill(row)


async def list_bills(
    tx: Transaction, caller: Principal, page: PageRequest, status: BillStatus | None = None
) -> Page[Bill]:
    bills = select(BillRow).where(BillRow.owner == caller.subject)
    if status is not None:
        bills = bills.where(BillRow.status == status)
    rows, cursor = await tx.page(bills, page, by=(BillRow.created_at, BillRow.id), descending=True)
    return Page(items=[_bill(row) for row in rows], next_cursor=cursor)


async def read(bill_id: UUID, tx: Transaction, caller: Principal) -> Bill:
    return _bill(await _own(tx, bill_id, caller.subject))


async def reconciliations(bill_id: UUID, tx: Transaction, caller: Principal) -> list[Reconciliation]:
    await _own(tx, bill_id, caller.subject)
    rows = await tx.scalars(select(ReconciliationRow).where(ReconciliationRow.bill_id == bill_id))
    return [_reconciliation(row) for row in rows]


async def cancel(bill_id: UUID, tx: Transaction, caller: Principal) -> Bill:
    row = await _own(tx, bill_id, caller.subject, for_update=True)
    if _move(row, domain.cancel(_standing(row))):
        tx.publish(BillWasCancelled(bill_id=row.id))
    return _bill(row)


async def reserve(bill_id: UUID, body: Reservation, tx: Transaction) -> Bill:
    row = await _own(tx, bill_id, body.owner, for_update=True)
    if await tx.get(ReleasedRow, body.payment_id) is not None:
        raise BillReserved("This payment has given the bill back and cannot take it again")
    _move(row, domain.reserve(_standing(row), body.payment_id, datetime.now(UTC)))
    return _bill(row)


async def release(bill_id: UUID, body: Reservation, tx: Transaction) -> Bill:
    row = await _own(tx, bill_id, body.owner, for_update=True)
    moved = _move(row, domain.release(_standing(row), body.payment_id))
    if moved:
        tx.publish(BillReleased(bill_id=row.id, payment_id=body.payment_id))
    if await tx.get(ReleasedRow, body.payment_id) is None:
        tx.add(ReleasedRow(payment_id=body.payment_id, bill_id=row.id, released_at=datetime.now(UTC)))
    return _bill(row)


async def settle(bill_id: UUID, body: Reservation, tx: Transaction) -> Bill:
    row = await _own(tx, bill_id, body.owner, for_update=True)
    if _move(row, domain.settle(_standing(row), body.payment_id)):
        paid = from_stroops(row.amount - row.discount)
        tx.publish(BillSettled(bill_id=row.id, payment_id=body.payment_id, amount=paid))
    return _bill(row)


async def hold_refund(bill_id: UUID, body: RefundHold, tx: Transaction) -> Bill:
    row = await _own(tx, bill_id, body.owner, for_update=True)
    if await tx.get(ReleasedRow, body.refund_id) is not None:
        raise BillNotSettled("This refund has given the bill back and cannot take it again")
    _move(row, domain.hold_refund(_standing(row), body.payment_id, body.refund_id))
    return _bill(row)


async def release_refund(bill_id: UUID, body: RefundHold, tx: Transaction) -> Bill:
    row = await _own(tx, bill_id, body.owner, for_update=True)
    _move(row, domain.release_refund(_standing(row), body.refund_id))
    if await tx.get(ReleasedRow, body.refund_id) is None:
        tx.add(ReleasedRow(payment_id=body.refund_id, bill_id=row.id, released_at=datetime.now(UTC)))
    return _bill(row)


async def refund(bill_id: UUID, body: RefundHold, tx: Transaction) -> Bill:
    row = await _own(tx, bill_id, body.owner, for_update=True)
    if _move(row, domain.refund(_standing(row), body.refund_id)):
        tx.publish(BillRefunded(bill_id=row.id, payment_id=body.payment_id, refund_id=body.refund_id))
    return _bill(row)


async def reconcile(event: PaymentSettled, tx: Transaction) -> None:
    """Records whether what was paid is what was billed."""
    row = await tx.find(BillRow, BillRow.id == event.bill_id, BillRow.owner == event.owner)
    paid = to_stroops(event.amount)
    billed = row.amount - row.discount if row else None
    verdict = domain.reconcile(_standing(row) if row else None, billed, event.payment_id, paid)
    tx.add(
        ReconciliationRow(
            payment_id=event.payment_id,
            bill_id=event.bill_id,
            owner=event.owner,
            verdict=verdict,
            paid=paid,
            billed=billed,
            transaction_hash=event.transaction_hash,
            ledger=event.ledger,
            reconciled_at=datetime.now(UTC),
        )
    )
    if verdict is not Verdict.AGREED:
        details = {"payment_id": str(event.payment_id), "bill_id": str(event.bill_id), "verdict": verdict.value}
        _log.error("a settled payment and its bill do not agree", extra=details)


async def _own(tx: Transaction, bill_id: UUID, owner: str, *, for_update: bool = False) -> BillRow:
    row = await tx.find(BillRow, BillRow.id == bill_id, BillRow.owner == owner, for_update=for_update)
    if row is None:
        raise NotFound("There is no such bill")
    return row


def _standing(row: BillRow) -> Standing:
    return Standing(BillStatus(row.status), row.payment_id, row.due_at, row.refund_id)


def _move(row: BillRow, to: Standing) -> bool:
    """Writes a bill's new standing; whether it is one."""
    moved = (row.status, row.payment_id, row.refund_id) != (to.status, to.payment_id, to.refund_id)
    if moved:
        row.status, row.payment_id, row.refund_id = to.status, to.payment_id, to.refund_id
        if to.payment_id is None:  # what a coupon took off, it took off for that payment
            row.discount, row.coupon = 0, None
    return moved


def _bill(row: BillRow) -> Bill:
    return Bill(
        id=row.id,
        owner=row.owner,
        provider=row.provider,
        reference=row.reference,
        amount=from_stroops(row.amount),
        payee=row.payee,
        due_at=row.due_at,
        status=BillStatus(row.status),
        payment_id=row.payment_id,
        discount=from_stroops(row.discount),
        coupon=row.coupon,
        created_at=row.created_at,
    )


def _reconciliation(row: ReconciliationRow) -> Reconciliation:
    return Reconciliation(
        payment_id=row.payment_id,
        bill_id=row.bill_id,
        verdict=Verdict(row.verdict),
        paid=from_stroops(row.paid),
        billed=None if row.billed is None else from_stroops(row.billed),
        transaction_hash=row.transaction_hash,
        ledger=row.ledger,
        reconciled_at=row.reconciled_at,
    )
