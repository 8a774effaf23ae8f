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
from reference.billpay.contracts.money import Amount, StellarAddress


class BillStatus(StrEnum):
    """``open → reserved → settled``; ``reserved → open`` when a payment is compensated; ``open → cancelled``."""

    OPEN = "open"
    RESERVED = "reserved"
    SETTLED = "settled"
    CANCELLED = "cancelled"


class BillExpired(Problem, status=409, title="The bill has expired"): ...


class BillAlreadyPaid(Problem, status=409, title="The bill is already paid"): ...


class BillReserved(Problem, status=409, title="Another payment of this bill is under way"): ...


class BillCancelled(Problem, status=409, title="The bill is cancelled"): ...


class NewBill(BaseModel):
    model_config = ConfigDict(extra="forbid")

    provider: Annotated[str, Field(min_length=1, max_length=100, examples=["Lagos Water"])]
    reference: Annotated[str, Field(min_length=1, max_length=60, examples=["INV-2026-0117"])]
    amount: Amount
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
    created_at: datetime


class Reservation(BaseModel):
    model_config = ConfigDict(extra="forbid")

    payment_id: UUID
    owner: str


class Verdict(StrEnum):
    """Whether a settled payment and its bill agree."""

    AGREED = "agreed"
    AMOUNT_DIFFERS = "amount-differs"
    OTHER_PAYMENT = "other-payment"
    BILL_UNKNOWN = "bill-unknown"


class Reconciliation(BaseModel):
    """What the ledger says was paid, beside what the bill asked for."""

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
        raises=(NotFound, BillExpired, BillAlreadyPaid, BillReserved, BillCancelled),
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
