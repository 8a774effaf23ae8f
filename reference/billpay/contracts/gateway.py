"""What the gateway answers itself."""

from __future__ import annotations

from pydantic import BaseModel

from microkit.page import Page
from reference.billpay.contracts.billing import Bill
from reference.billpay.contracts.payment import Payment
from reference.billpay.contracts.user import User


class Dashboard(BaseModel):
    """What somebody sees first. A part whose service is away is ``null``, and named in ``missing``."""

    user: User | None
    bills: Page[Bill] | None
    """The newest five."""
    payments: Page[Payment] | None
    """The newest five."""
    missing: list[str]
