"""The gateway: the one address that the outside knows."""

from __future__ import annotations

from microkit import ANYONE, SIGNED_IN, Gateway, Route, Service

service = Service("gateway", port=3000, title="Billpay gateway")

gateway = Gateway(
    [
        # Registration and log-in are for everybody; the user service guards the rest of its operations itself.
        Route("/api/users", service="user", strip_prefix="/api"),
        Route("/api/sessions", service="user", strip_prefix="/api"),
        Route("/api/payments", service="payment", strip_prefix="/api", allow=SIGNED_IN),
        Route("/api/bills", service="billing", strip_prefix="/api", allow=SIGNED_IN),
    ],
    title="Billpay",
    body_limit=1024 * 1024,
)

service.mount("/", gateway, allow=ANYONE)
