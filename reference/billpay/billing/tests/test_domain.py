"""The status machine of bills, every step from every status."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from microkit.errors import Problem
from reference.billpay.billing import domain
from reference.billpay.billing.domain import Standing
from reference.billpay.contracts.billing import (
    BillAlreadyPaid,
    BillCancelled,
    BillExpired,
    BillReserved,
    BillStatus,
    Verdict,
)

NOW = datetime(2026, 1, 17, 8, tzinfo=UTC)
MINE, OTHER = uuid4(), uuid4()
LATER = NOW + timedelta(days=1)

OPEN = Standing(BillStatus.OPEN, None, LATER)
RESERVED = Standing(BillStatus.RESERVED, MINE, LATER)
TAKEN = Standing(BillStatus.RESERVED, OTHER, LATER)
SETTLED = Standing(BillStatus.SETTLED, MINE, LATER)
PAID = Standing(BillStatus.SETTLED, OTHER, LATER)
CANCELLED = Standing(BillStatus.CANCELLED, None, LATER)


def reserve(bill: Standing) -> Standing:
    return domain.reserve(bill, MINE, NOW)


def release(bill: Standing) -> Standing:
    return domain.release(bill, MINE)


def settle(bill: Standing) -> Standing:
    return domain.settle(bill, MINE)


Step = Callable[[Standing], Standing]


@pytest.mark.parametrize(
    ("step", "before", "after"),
    [
        (reserve, OPEN, RESERVED),
        (reserve, RESERVED, RESERVED),
        (reserve, TAKEN, BillReserved),
        (reserve, SETTLED, BillAlreadyPaid),
        (reserve, PAID, BillAlreadyPaid),
        (reserve, CANCELLED, BillCancelled),
        (release, OPEN, OPEN),
        (release, RESERVED, OPEN),
        (release, TAKEN, TAKEN),
        (release, SETTLED, BillAlreadyPaid),
        (release, PAID, PAID),
        (release, CANCELLED, CANCELLED),
        (settle, OPEN, BillAlreadyPaid),
        (settle, RESERVED, SETTLED),
        (settle, TAKEN, BillAlreadyPaid),
        (settle, SETTLED, SETTLED),
        (settle, PAID, BillAlreadyPaid),
        (settle, CANCELLED, BillAlreadyPaid),
        (domain.cancel, OPEN, CANCELLED),
        (domain.cancel, RESERVED, BillReserved),
        (domain.cancel, TAKEN, BillReserved),
        (domain.cancel, SETTLED, BillAlreadyPaid),
        (domain.cancel, CANCELLED, CANCELLED),
    ],
)
def test_a_bill_moves_as_its_status_allows(step: Step, before: Standing, after: Standing | type[Problem]) -> None:
    if isinstance(after, Standing):
        assert step(before) == after
    else:
        with pytest.raises(after):
            step(before)


def test_an_expired_bill_is_not_reserved() -> None:
    with pytest.raises(BillExpired, match="16 January 2026 at 08:00 UTC"):
        domain.reserve(Standing(BillStatus.OPEN, None, NOW - timedelta(days=1)), MINE, NOW)


def test_a_bill_can_be_reserved_until_the_moment_it_is_due() -> None:
    assert domain.reserve(Standing(BillStatus.OPEN, None, NOW), MINE, NOW).status is BillStatus.RESERVED


def test_who_holds_an_expired_bill_goes_on_holding_it() -> None:
    held = Standing(BillStatus.RESERVED, MINE, NOW - timedelta(days=1))
    assert domain.reserve(held, MINE, NOW) == held


@pytest.mark.parametrize(
    ("bill", "billed", "verdict"),
    [
        (SETTLED, 100, Verdict.AGREED),
        (RESERVED, 100, Verdict.AGREED),
        (SETTLED, 101, Verdict.AMOUNT_DIFFERS),
        (PAID, 100, Verdict.OTHER_PAYMENT),
        (OPEN, 100, Verdict.OTHER_PAYMENT),
        (None, None, Verdict.BILL_UNKNOWN),
    ],
)
def test_a_payment_is_compared_with_its_bill(bill: Standing | None, billed: int | None, verdict: Verdict) -> None:
    assert domain.reconcile(bill, billed, MINE, 100) is verdict
