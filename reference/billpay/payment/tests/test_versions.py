"""A payment goes on with the version of its saga that it began with."""

from __future__ import annotations

from reference.billpay.payment.sagas import pay_bill, pay_bill_1
from reference.billpay.payment.service import service


def test_the_first_version_is_offered_as_it_was_beside_the_one_with_coupons() -> None:
    assert [(each.version, each.fingerprint) for each in service.declared.sagas if each.name == "pay-bill"] == [
        (2, pay_bill.fingerprint),
        (1, "0e5cc18ad4dcfac5"),
    ]
    assert [step.name for step in pay_bill_1.steps] == [
        step.name for step in pay_bill.steps if not step.name.endswith("_coupon")
    ]
