"""The gateway: the one address that the outside knows."""

from __future__ import annotations

from microkit import ANYONE, SIGNED_IN, Gateway, PageRequest, Route, Service
from microkit.gateway.composition import join
from microkit.gateway.filters import Compress, Cors, RateLimit, ResponseHeaders, Retry
from reference.billpay.contracts.billing import Billing
from reference.billpay.contracts.gateway import Dashboard
from reference.billpay.contracts.payment import Payments
from reference.billpay.contracts.user import Users
from reference.billpay.gateway.settings import GatewaySettings

service = Service("gateway", port=3000, title="Billpay gateway", settings=GatewaySettings)

GUESSING = RateLimit("60/m burst=60", by="address", away="local", name="guessing")
"""For what can be guessed: log-ins, refresh tokens, new accounts. Goes on counting while its store is away."""

USE = RateLimit("600/m burst=200", by="user", name="use")

PATIENT = Retry(keyed=True)
"""The services keep what they answered to an Idempotency-Key, so the death of one copy need not be seen."""

gateway = Gateway(
    [
        # No route has a cache: each answer is somebody's own.
        # Registration and log-in are for everybody; the user service guards the rest of its operations itself.
        Route("/api/sessions", service="user", strip_prefix="/api", methods=("POST",), filters=(GUESSING,)),
        Route("/api/sessions", service="user", strip_prefix="/api", filters=(USE,)),
        Route("/api/users", service="user", strip_prefix="/api", methods=("POST",), filters=(GUESSING,)),
        Route("/api/users", service="user", strip_prefix="/api", filters=(USE, PATIENT)),
        Route("/api/payments", service="payment", strip_prefix="/api", allow=SIGNED_IN, filters=(USE, PATIENT)),
        Route("/api/coupons", service="billing", strip_prefix="/api", allow=SIGNED_IN, filters=(USE, PATIENT)),
        Route("/api/bills", service="billing", strip_prefix="/api", allow=SIGNED_IN, filters=(USE, PATIENT)),
    ],
    filters=[
        Cors(setting="cors_origins"),
        ResponseHeaders(set={"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}),
        Compress(),
    ],
    title="Billpay",
    body_limit=1024 * 1024,
)

service.mount("/", gateway, allow=ANYONE)

users = service.client(Users)
bills = service.client(Billing)
payments = service.client(Payments)


@service.get("/api/dashboard", allow="member")
async def dashboard() -> Dashboard:
    """What the caller sees first: profile, bills and payments, asked for at once."""
    newest = PageRequest(limit=5)
    return await join(Dashboard, within=2.0, user=users.me(), bills=bills.list(newest), payments=payments.list(newest))
