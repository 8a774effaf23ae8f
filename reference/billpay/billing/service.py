"""The billing service: its operations and its one event."""

from __future__ import annotations

from pathlib import Path

from microkit import Service
from reference.billpay.billing import coupons, handlers
from reference.billpay.billing.settings import BillingSettings
from reference.billpay.billing.tables import Base
from reference.billpay.contracts.billing import Billing
from reference.billpay.contracts.coupons import Coupons
from reference.billpay.contracts.payment import PaymentSettled

service = Service(
    "billing",
    port=3003,
    settings=BillingSettings,
    tables=Base.metadata,
    migrations=Path(__file__).parent / "migrations",
    title="Bills",
)

service.handles(Billing.create)(handlers.create)
service.handles(Billing.list)(handlers.list_bills)
service.handles(Billing.read)(handlers.read)
service.handles(Billing.reconciliations)(handlers.reconciliations)
service.handles(Billing.cancel)(handlers.cancel)
service.handles(Billing.reserve)(handlers.reserve)
service.handles(Billing.release)(handlers.release)
service.handles(Billing.settle)(handlers.settle)
service.handles(Billing.hold_refund)(handlers.hold_refund)
service.handles(Billing.release_refund)(handlers.release_refund)
service.handles(Billing.refund)(handlers.refund)
service.handles(Coupons.create)(coupons.create)
service.handles(Coupons.list)(coupons.list_coupons)
service.handles(Coupons.read)(coupons.read)
service.handles(Coupons.reserve)(coupons.reserve)
service.handles(Coupons.give_back)(coupons.give_back)
service.handles(Coupons.redeem)(coupons.redeem)
service.on(PaymentSettled)(handlers.reconcile)
