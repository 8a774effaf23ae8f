"""The billing service: bills and their reconciliation with payments."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from microkit.contract import Contract, get, post
from microkit.errors import NotFound, Problem
from microkit.message import Event
from microkit.page import Page, PageRequest
from reference.billpay.contracts.money import Amount, Deducted, NewAmount, StellarAddress


class BillStatus(StrEnum):
    """``open → reserved → settled``; ``reserved → open`` when a payment is compensated; ``open → cancelled``.

    ``settled → refunding → refunded`` when its payment is paid back, ``refunding → settled`` when it cannot be.
    """

    OPEN = "open"
    RESERVED = "reserved"
    SETTLED = "settled"
    CANCELLED = "cancelled"
    REFUNDING = "refunding"
    REFUNDED = "refunded"


class BillExpired(Problem, status=409, title="The bill has expired"): ...


class BillAlreadyPaid(Problem, status=409, title="The bill is already paid"): ...


class BillReserved(Problem, status=409, title="Another payment of this bill is under way"): ...


class BillCancelled(Problem, status=409, title="The bill is cancelled"): ...


class BillWasRefunded(Problem, status=409, title="The bill was paid and refunded"): ...


class BillNotSettled(Problem, status=409, title="The bill is not settled by this payment"): ...


class NewBill(BaseModel):
    model_config = ConfigDict(extra="forbid")

    provider: Annotated[str, Field(min_length=1, max_length=100, examples=["Lagos Water"])]
    reference: Annotated[str, Field(min_length=1, max_length=60, examples=["INV-2026-0117"])]
    amount: NewAmount
    payee: StellarAddress
    due_at: AwareDatetime


class Bill(BaseModel):
    id: UUID
    owner: str
    provider: str
    reference: str
    amount: Amount
    payee: StellarAddress
    due_at: datetime
    status: BillStatus
    payment_id: UUID | None
    discount: Deducted
    """What a coupon took off the amount, by the payment that holds or settled the bill."""
    coupon: str | None
    created_at: datetime


class Reservation(BaseModel):
    model_config = ConfigDict(extra="forbid")

    payment_id: UUID
    owner: str


class RefundHold(BaseModel):
    """The refund of a payment that settled the bill."""

    model_config = ConfigDict(extra="forbid")

    refund_id: UUID
    payment_id: UUID
    owner: str


class Verdict(StrEnum):
    """Whether a settled payment and its bill agree."""

    AGREED = "agreed"
    AMOUNT_DIFFERS = "amount-differs"
    OTHER_PAYMENT = "other-payment"
    BILL_UNKNOWN = "bill-unknown"


class Reconciliation(BaseModel):
    """What the ledger says was paid, beside what the bill asked for: its amount without what a coupon took off."""

    payment_id: UUID
    bill_id: UUID
    verdict: Verdict
    paid: Amount
    billed: Amount | None
    transaction_hash: str
    ledger: int
    reconciled_at: datetime


Reconciliations = list[Reconciliation]
"""Named, because inside the contract ``list`` is an operation."""


class BillCreated(Event, topic="billing.bills", key="bill_id"):
    bill_id: UUID
    owner: str
    amount: Amount


class BillSettled(Event, topic="billing.bills", key="bill_id"):
    bill_id: UUID
    payment_id: UUID
    amount: Amount


class BillReleased(Event, topic="billing.bills", key="bill_id"):
    bill_id: UUID
    payment_id: UUID


class BillRefunded(Event, topic="billing.bills", key="bill_id"):
    bill_id: UUID
    payment_id: UUID
    refund_id: UUID


class BillWasCancelled(Event, topic="billing.bills", key="bill_id"):
    bill_id: UUID


class Billing(Contract, service="billing", prefix="/bills", allow="member"):
    @post("", status=201)
    async def create(self, body: NewBill) -> Bill:
        """Enter a bill of a utility provider."""
        ...

    @get("")
    async def list(self, page: PageRequest, status: BillStatus | None = None) -> Page[Bill]:
        """The caller's bills, newest first."""
        ...

    @get("/{bill_id}", raises=(NotFound,))
    async def read(self, bill_id: UUID) -> Bill:
        """One of the caller's bills."""
        ...

    @get("/{bill_id}/reconciliations", raises=(NotFound,))
    async def reconciliations(self, bill_id: UUID) -> Reconciliations:
        """The settled payments of one of the caller's bills, each compared with what was billed."""
        ...

    @post("/{bill_id}/cancel", raises=(NotFound, BillAlreadyPaid, BillReserved))
    async def cancel(self, bill_id: UUID) -> Bill:
        """Cancel an open bill. Cancelling it again does nothing."""
        ...

    @post(
        "/{bill_id}/reserve",
        allow="service:payment",
        idempotent=True,
        raises=(NotFound, BillExpired, BillAlreadyPaid, BillReserved, BillCancelled, BillWasRefunded),
    )
    async def reserve(self, bill_id: UUID, body: Reservation) -> Bill:
        """Hold the bill for one payment. The same payment may ask again."""
        ...

    @post("/{bill_id}/release", allow="service:payment", idempotent=True, raises=(NotFound, BillAlreadyPaid))
    async def release(self, bill_id: UUID, body: Reservation) -> Bill:
        """Give a reservation back. Nothing happens where this payment does not hold it."""
        ...

    @post("/{bill_id}/settle", allow="service:payment", idempotent=True, raises=(NotFound, BillAlreadyPaid))
    async def settle(self, bill_id: UUID, body: Reservation) -> Bill:
        """The payment that holds the bill is final."""
        ...

    @post("/{bill_id}/hold-refund", allow="service:payment", idempotent=True, raises=(NotFound, BillNotSettled))
    async def hold_refund(self, bill_id: UUID, body: RefundHold) -> Bill:
        """The bill's payment is going to be paid back. The same refund may ask again."""
        ...

    @post("/{bill_id}/release-refund", allow="service:payment", idempotent=True, raises=(NotFound, BillWasRefunded))
    async def release_refund(self, bill_id: UUID, body: RefundHold) -> Bill:
        """It is not paid back after all. Nothing happens where this refund does not hold the bill."""
        ...

    @post("/{bill_id}/refund", allow="service:payment", idempotent=True, raises=(NotFound, BillNotSettled))
    async def refund(self, bill_id: UUID, body: RefundHold) -> Bill:
        """The payment has been paid back."""
        ...
