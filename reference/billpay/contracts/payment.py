"""The payment service: wallets and payments over Stellar."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from microkit.contract import Contract, get, post
from microkit.errors import NotFound, Problem
from microkit.message import Event
from microkit.page import Page, PageRequest
from reference.billpay.contracts.money import Amount, StellarAddress


class PaymentStatus(StrEnum):
    """``pending → submitted → settled``, or ``failed`` with the reason."""

    PENDING = "pending"
    SUBMITTED = "submitted"
    SETTLED = "settled"
    FAILED = "failed"


class WalletMissing(Problem, status=409, title="Open a wallet first: POST /payments/wallet"): ...


class Wallet(BaseModel):
    address: StellarAddress
    balance: str
    """In XLM as the ledger tells it; ``"0"`` before the account is funded."""


class NewPayment(BaseModel):
    model_config = ConfigDict(extra="forbid")

    bill_id: UUID


class Payment(BaseModel):
    id: UUID
    bill_id: UUID
    amount: Amount | None
    """Known once the bill is reserved."""
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


class Wallets(Contract, service="payment", prefix="/payments/wallet", allow="member"):
    @post("", status=201)
    async def open(self) -> Wallet:
        """Open the caller's wallet, funded on networks that have a friendbot. Opening it again returns the same."""
        ...

    @get("", raises=(NotFound,))
    async def read(self) -> Wallet:
        """The caller's wallet, with the balance on the ledger."""
        ...
