"""Coupons: a code that takes something off one bill. Billing's, as the bills are.

A coupon is for one payment: ``open → reserved → redeemed``, and back to ``open`` when its payment is compensated or
refunded.
"""

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
from reference.billpay.contracts.money import Amount, Deducted

CouponCode = Annotated[str, Field(pattern=r"^[A-Z0-9]{6,20}$", examples=["WELCOME2026"])]


class CouponStatus(StrEnum):
    OPEN = "open"
    RESERVED = "reserved"
    REDEEMED = "redeemed"


class CouponExists(Problem, status=409, title="There is a coupon with this code already"): ...


class CouponExpired(Problem, status=409, title="The coupon has expired"): ...


class CouponUsed(Problem, status=409, title="The coupon has been used"): ...


class BillNotHeld(Problem, status=409, title="The payment does not hold the bill"): ...


class NewCoupon(BaseModel):
    """``percent`` of the bill is taken off. With ``owner`` only they can use it."""

    model_config = ConfigDict(extra="forbid")

    code: CouponCode
    percent: Annotated[int, Field(ge=1, le=90)]
    expires_at: AwareDatetime
    owner: Annotated[str, Field(min_length=1, max_length=100)] | None = None


class Coupon(BaseModel):
    code: CouponCode
    percent: int
    owner: str | None
    status: CouponStatus
    payment_id: UUID | None
    expires_at: datetime


class CouponClaim(BaseModel):
    model_config = ConfigDict(extra="forbid")

    payment_id: UUID
    bill_id: UUID
    owner: str


class Deduction(BaseModel):
    """What a coupon takes off a bill, and what is left to be paid."""

    discount: Deducted
    due: Amount


class CouponRedeemed(Event, topic="billing.coupons", key="code"):
    code: str
    payment_id: UUID
    bill_id: UUID


class CouponReturned(Event, topic="billing.coupons", key="code"):
    code: str
    payment_id: UUID
    bill_id: UUID


class Coupons(Contract, service="billing", prefix="/coupons", allow="member"):
    @post("", status=201, allow="admin", raises=(CouponExists,))
    async def create(self, body: NewCoupon) -> Coupon:
        """Issue a coupon, on behalf of the providers who grant it."""
        ...

    @get("", allow="admin")
    async def list(self, page: PageRequest) -> Page[Coupon]:
        """All coupons, by their codes."""
        ...

    @get("/{code}", raises=(NotFound,))
    async def read(self, code: CouponCode) -> Coupon:
        """A coupon that the caller can use."""
        ...

    @post(
        "/{code}/reserve",
        allow="service:payment",
        idempotent=True,
        raises=(NotFound, CouponExpired, CouponUsed, BillNotHeld),
    )
    async def reserve(self, code: CouponCode, body: CouponClaim) -> Deduction:
        """Hold the coupon for a payment that holds the bill, and take its share off. The same payment may ask again."""
        ...

    @post("/{code}/return", allow="service:payment", idempotent=True)
    async def give_back(self, code: CouponCode, body: CouponClaim) -> None:
        """The payment was not made, or was refunded: the coupon can be used again. Nothing happens where this payment
        does not have it; a reservation by it that comes later is refused."""
        ...

    @post("/{code}/redeem", allow="service:payment", idempotent=True, raises=(NotFound, CouponUsed))
    async def redeem(self, code: CouponCode, body: CouponClaim) -> Coupon:
        """The payment that holds the coupon is final."""
        ...
