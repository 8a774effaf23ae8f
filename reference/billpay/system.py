"""Billpay: people pay their utility bills over Stellar. ``microkit up`` starts it."""

from __future__ import annotations

from microkit import System
from reference.billpay.billing.service import service as billing
from reference.billpay.drill import BillLoad
from reference.billpay.gateway.service import service as gateway
from reference.billpay.ledger.service import service as ledger
from reference.billpay.payment.service import service as payment
from reference.billpay.seed import seed
from reference.billpay.story import story
from reference.billpay.user.service import service as user

system = System(
    "billpay",
    services=[gateway, user, payment, billing, ledger],
    issuer="user",
    seed=seed,
    story=story,
    drill=BillLoad,
)
