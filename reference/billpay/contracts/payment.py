"""The payment service: wallets and payments over Stellar."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from microkit.contract import Contract, get, post
from microkit.errors import NotFound, Problem
from microkit.message import Event
from microkit.page import Page, PageRequest
from reference.billpay.contracts.coupons import CouponCode
from reference.billpay.contracts.money import Amount, StellarAddress


class PaymentStatus(StrEnum):
    """``pending → submitted → settled``, or ``failed`` with the reason. A settled payment that is paid back is
    ``refunding`` and then ``refunded``, or ``settled`` again if it could not be."""

    PENDING = "pending"
    SUBMITTED = "submitted"
    SETTLED = "settled"
    FAILED = "failed"
    REFUNDING = "refunding"
    REFUNDED = "refunded"


class WalletMissing(Problem, status=409, title="Open a wallet first: POST /payments/wallet"): ...


class NotSettled(Problem, status=409, title="Only a settled payment can be paid back"): ...


class RefundWalletMissing(Problem, status=409, title="Open billpay's wallet first: POST /payments/refund-wallet"): ...


class Wallet(BaseModel):
    address: StellarAddress
    balance: str
    """In XLM as the ledger tells it; ``"0"`` before the account is funded."""


class NewPayment(BaseModel):
    model_config = ConfigDict(extra="forbid")

    bill_id: UUID
    coupon: CouponCode | None = None


class NewRefund(BaseModel):
    """``cause`` is why, for the payer and for the books."""

    model_config = ConfigDict(extra="forbid")

    cause: Annotated[str, Field(min_length=1, max_length=500, examples=["The meter was read wrongly."])]


class Refund(BaseModel):
    """A settled payment that is paid back, whole, to the wallet that it came from."""

    id: UUID
    payment_id: UUID
    amount: Amount
    cause: str
    status: PaymentStatus
    reason: str | None
    """Why it failed."""
    transaction_hash: str | None
    ledger: int | None
    created_at: datetime
    updated_at: datetime


class Payment(BaseModel):
    id: UUID
    bill_id: UUID
    coupon: str | None
    amount: Amount | None
    """What is paid: the bill's amount without what the coupon takes off. Known once both are reserved."""
    status: PaymentStatus
    reason: str | None
    """Why it failed, for the person who paid."""
    transaction_hash: str | None
    ledger: int | None
    created_at: datetime
    updated_at: datetime


class PaymentStarted(Event, topic="payment.payments", key="payment_id"):
    payment_id: UUID
    bill_id: UUID
    owner: str


class PaymentSettled(Event, topic="payment.payments", key="payment_id"):
    payment_id: UUID
    bill_id: UUID
    owner: str
    amount: Amount
    transaction_hash: str
    ledger: int


class PaymentFailed(Event, topic="payment.payments", key="payment_id"):
    payment_id: UUID
    bill_id: UUID
    owner: str
    reason: str


class RefundStarted(Event, topic="payment.payments", key="payment_id"):
    payment_id: UUID
    refund_id: UUID
    owner: str
    cause: str


class PaymentRefunded(Event, topic="payment.payments", key="payment_id"):
    payment_id: UUID
    refund_id: UUID
    bill_id: UUID
    owner: str
    amount: Amount
    transaction_hash: str
    ledger: int


class RefundFailed(Event, topic="payment.payments", key="payment_id"):
    payment_id: UUID
    refund_id: UUID
    owner: str
    reason: str


class Payments(Contract, service="payment", prefix="/payments", allow="member"):
    @post("", status=202, raises=(WalletMissing,))
    async def pay(self, body: NewPayment) -> Payment:
        """Pay a bill. The answer comes at once; the payment's status tells how it goes on."""
        ...

    @get("")
    async def list(self, page: PageRequest) -> Page[Payment]:
        """The caller's payments, newest first."""
        ...

    @get("/{payment_id}", raises=(NotFound,))
    async def read(self, payment_id: UUID) -> Payment:
        """One of the caller's payments."""
        ...

    @post(
        "/{payment_id}/refund",
        status=202,
        allow="admin",
        idempotent=True,
        raises=(NotFound, NotSettled, RefundWalletMissing),
    )
    async def refund(self, payment_id: UUID, body: NewRefund) -> Refund:
        """Pay a settled payment back, out of billpay's own wallet. Asked again, while it is under way or after it was
        made, the answer is the refund that there is."""
        ...

    @get("/{payment_id}/refund", raises=(NotFound,))
    async def read_refund(self, payment_id: UUID) -> Refund:
        """The latest refund of one of the caller's payments."""
        ...


class Wallets(Contract, service="payment", prefix="/payments/wallet", allow="member"):
    @post("", status=201)
    async def open(self) -> Wallet:
        """Open the caller's wallet, funded on networks that have a friendbot. Opening it again returns the same."""
        ...

    @get("", raises=(NotFound,))
    async def read(self) -> Wallet:
        """The caller's wallet, with the balance on the ledger."""
        ...


class RefundWallet(Contract, service="payment", prefix="/payments/refund-wallet", allow="admin"):
    """Billpay's own wallet, out of which it pays back. Whoever runs billpay sees to it that there is enough in it, and
    settles with the provider, who has the money of the payment."""

    @post("", status=201)
    async def open(self) -> Wallet:
        """Open billpay's wallet, funded on networks that have a friendbot. Opening it again returns the same."""
        ...

    @get("", raises=(NotFound,))
    async def read(self) -> Wallet:
        """Billpay's wallet, with the balance on the ledger."""
        ...
