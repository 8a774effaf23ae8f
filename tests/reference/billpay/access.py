"""Who may call what in billpay, and tokens that let nobody in.

The table is kept by hand, beside what the contracts say: an operation that is new, or open to others than before, makes
the tests of access fail until somebody has written here that it is meant so.
"""

from __future__ import annotations

import time
from typing import Final
from uuid import uuid4

import jwt

from microkit.auth import Issuer
from microkit.instance import Instance
from microkit.web import WebApp

ANYONE: Final = "anyone"
MEMBER: Final = "member"
ADMIN: Final = "admin"
PAYMENT: Final = "service:payment"

ACCESS: Final = {
    "user": {
        "POST /users": ANYONE,
        "GET /users": ADMIN,
        "GET /users/me": MEMBER,
        "PATCH /users/me": MEMBER,
        "PUT /users/{user_id}/roles": ADMIN,
        "POST /sessions": ANYONE,
        "POST /sessions/refresh": ANYONE,
        "DELETE /sessions/current": MEMBER,
        "GET /.well-known/jwks.json": ANYONE,
    },
    "payment": {
        "POST /payments/wallet": MEMBER,
        "GET /payments/wallet": MEMBER,
        "POST /payments/refund-wallet": ADMIN,
        "GET /payments/refund-wallet": ADMIN,
        "POST /payments": MEMBER,
        "GET /payments": MEMBER,
        "GET /payments/{payment_id}": MEMBER,
        "POST /payments/{payment_id}/refund": ADMIN,
        "GET /payments/{payment_id}/refund": MEMBER,
    },
    "billing": {
        "POST /bills": MEMBER,
        "GET /bills": MEMBER,
        "GET /bills/{bill_id}": MEMBER,
        "GET /bills/{bill_id}/reconciliations": MEMBER,
        "POST /bills/{bill_id}/cancel": MEMBER,
        "POST /bills/{bill_id}/reserve": PAYMENT,
        "POST /bills/{bill_id}/release": PAYMENT,
        "POST /bills/{bill_id}/settle": PAYMENT,
        "POST /bills/{bill_id}/hold-refund": PAYMENT,
        "POST /bills/{bill_id}/release-refund": PAYMENT,
        "POST /bills/{bill_id}/refund": PAYMENT,
        "POST /coupons": ADMIN,
        "GET /coupons": ADMIN,
        "GET /coupons/{code}": MEMBER,
        "POST /coupons/{code}/reserve": PAYMENT,
        "POST /coupons/{code}/return": PAYMENT,
        "POST /coupons/{code}/redeem": PAYMENT,
    },
    # As on Horizon, nobody logs in: what moves money is the signature on an envelope.
    "ledger": {
        "GET /": ANYONE,
        "GET /accounts/{account_id}": ANYONE,
        "GET /ledgers": ANYONE,
        "GET /ledgers/{sequence}": ANYONE,
        "GET /fee_stats": ANYONE,
        "POST /transactions": ANYONE,
        "GET /transactions/{hash}": ANYONE,
        "GET /friendbot": ANYONE,
    },
}

BESIDE: Final = {
    f"GET {path}"
    for path in (
        *("/health", "/health/live", "/health/ready", "/health/startup", "/metrics"),
        *("/openapi.json", "/docs", "/asyncapi.json"),
    )
}
"""What no OpenAPI document names: it is for anyone who reaches the port, tells nothing of anybody, and changes
nothing. A gateway in production has no ``/metrics`` and names no parts."""

AT_THE_GATEWAY: Final = {*BESIDE - {"GET /asyncapi.json"}, "GET /gateway.json", "* /*"}
"""The last is all its routes, in which :func:`by_gateway` holds what they lead to."""


def ways_into(instance: Instance) -> set[str]:
    """Every way into a service, as its server looks for it: mounted applications as ``* /prefix/*``."""
    assert instance._server is not None
    app = instance._server._config.app
    assert isinstance(app, WebApp)
    templates = [template.methods for group in app._table._templates.values() for template in group]
    paths = [*app._table._whole.values(), *templates]
    found = {f"{method} {path.template}" for path in paths for method in path.by_method if method != "HEAD"}
    return found | {f"* {mount.prefix}/*" for mount in app._mounts}


def by_gateway() -> dict[str, str]:
    """What the outside may call: all that is not for services alone, without the ledger and the keys."""
    found = {"GET /api/dashboard": MEMBER}
    for service in ("user", "payment", "billing"):
        for name, who in ACCESS[service].items():
            method, _, path = name.partition(" ")
            if who != PAYMENT and not path.startswith("/.well-known"):
                found[f"{method} /api{path}"] = who
    return found


def forged(issuer: Issuer) -> dict[str, str]:
    """Tokens that look like the issuer's and are not, or are no more."""
    good = issuer.sign(str(uuid4()), roles=["member", "admin"]).value
    claims = jwt.decode(good, options={"verify_signature": False})
    header = jwt.get_unverified_header(good)
    key = issuer._keys[0].key.key
    public = key.public_key().public_bytes_raw()
    extra = {"typ": "at+jwt", "kid": header["kid"]}
    now = int(time.time())
    signed = {
        "an expired one": {**claims, "iat": now - 700, "exp": now - 100},
        "one without an end": {name: value for name, value in claims.items() if name != "exp"},
        "one for somebody else": {**claims, "aud": "busline"},
        "one of another issuer": {**claims, "iss": "https://evil.example"},
        "one that says it is a service": {**claims, "sub": "service:payment", "roles": ["service"]},
    }
    found = {kind: jwt.encode(value, key, algorithm="EdDSA", headers=extra) for kind, value in signed.items()}
    found["alg none"] = jwt.encode(claims, "", algorithm="none", headers=extra)
    found["HS256 with the public key"] = jwt.encode(claims, public, algorithm="HS256", headers=extra)
    found["an unknown key"] = jwt.encode(claims, key, algorithm="EdDSA", headers={**extra, "kid": "unknown"})
    found["an ID token"] = jwt.encode(claims, key, algorithm="EdDSA", headers={**extra, "typ": "JWT"})
    return found
