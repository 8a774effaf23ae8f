"""The payment service: its operations, its saga, and what they are made with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp

from microkit import Service
from microkit.db import Database
from microkit.discovery.port import Resolver
from microkit.telemetry import Telemetry
from reference.billpay.contracts.billing import Billing
from reference.billpay.contracts.coupons import Coupons
from reference.billpay.contracts.payment import Payments, RefundWallet, Wallets
from reference.billpay.payment import handlers
from reference.billpay.payment.cashier import Cashier, Network
from reference.billpay.payment.horizon import Horizon, fixed
from reference.billpay.payment.keys import open_vault
from reference.billpay.payment.refunds import refund_payment
from reference.billpay.payment.sagas import pay_bill, pay_bill_1
from reference.billpay.payment.settings import PaymentSettings
from reference.billpay.payment.tables import Base
from reference.billpay.payment.vault import Vault

service = Service(
    "payment",
    port=3002,
    settings=PaymentSettings,
    tables=Base.metadata,
    migrations=Path(__file__).parent / "migrations",
    title="Payments",
)

service.client(Billing)
service.client(Coupons)

# The wallet's path is known before a payment's is matched: /payments/wallet is no payment.
service.handles(Wallets.open)(handlers.open_wallet)
service.handles(Wallets.read)(handlers.read_wallet)
service.handles(RefundWallet.open)(handlers.open_refund_wallet)
service.handles(RefundWallet.read)(handlers.read_refund_wallet)
service.handles(Payments.pay)(handlers.pay)
service.handles(Payments.list)(handlers.list_payments)
service.handles(Payments.read)(handlers.read)
service.handles(Payments.refund)(handlers.refund)
service.handles(Payments.read_refund)(handlers.read_refund)
service.saga(pay_bill)
service.saga(pay_bill_1)
service.saga(refund_payment)


@service.resource
async def horizon(
    settings: PaymentSettings, session: aiohttp.ClientSession, telemetry: Telemetry, resolver: Resolver
) -> AsyncIterator[Horizon]:
    """Horizon at the URL of the settings, else at the sandbox ledger, wherever that is."""

    async def sandbox() -> str:
        return (await resolver.resolve("ledger"))[0].url

    yield Horizon(
        fixed(settings.horizon_url) if settings.horizon_url else sandbox,
        session,
        telemetry,
        passphrase=settings.network_passphrase,
        timeout=settings.horizon_timeout,
        submit_timeout=settings.submit_timeout,
    )


@service.resource
async def vault(settings: PaymentSettings) -> AsyncIterator[Vault]:
    """What opens the wallets' seeds."""
    yield open_vault(settings)


@service.resource
async def cashier(
    settings: PaymentSettings, database: Database, horizon: Horizon, vault: Vault
) -> AsyncIterator[Cashier]:
    """What pays."""
    network = Network(settings.network_passphrase, settings.payment_window, settings.max_fee, settings.history_lag)
    yield Cashier(database, horizon, vault, network)
