"""Demo data: people with wallets, bills of the providers that the sandbox ledger knows, and a coupon.

It goes in through the gateway, as any client's data would; only the first administrator is made by the user service
itself. What is there already stays as it is, so seeding twice does no harm.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import aiohttp

from microkit.errors import ConfigurationError, MicrokitError
from microkit.system import Seeded
from reference.billpay.contracts.ledger import DEMO_PROVIDERS
from reference.billpay.user.passwords import Passwords
from reference.billpay.user.service import first_admin

ADMIN: Final = ("admin@billpay.example", "walnut-harbor-61-crane")
PEOPLE: Final = {
    ("amara@billpay.example", "Amara Okafor"): "copper-lantern-47-reed",
    ("tunde@billpay.example", "Tunde Bello"): "velvet-anchor-82-mint",
    ("zainab@billpay.example", "Zainab Yusuf"): "marble-thicket-35-dune",
}
"""Published with the source, so good for a machine of one's own only; seeding refuses to run in production."""

COUPON: Final = "WELCOME2026"

_PAYING: Final = 60.0
_AMOUNTS: Final = {
    "Lagos Water": "18.7500000",
    "Ikeja Electric": "64.2000000",
    "Eko Gas": "27.1000000",
    "Rivers Broadband": "35.0000000",
    "Abuja Waste": "9.9900000",
}


@dataclass(frozen=True, slots=True)
class Client:
    """Calls through the gateway."""

    session: aiohttp.ClientSession
    gateway: str

    async def call(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        token: str | None = None,
        accept: tuple[int, ...] = (200, 201),
    ) -> Any:
        """The JSON answer.

        Raises:
            MicrokitError: the status is none of ``accept``.
        """
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        async with self.session.request(method, self.gateway + path, json=body, headers=headers) as response:
            answer = await response.json(content_type=None)
            if response.status not in accept:
                raise MicrokitError(f"Seeding failed: {method} {path} answered {response.status}: {answer}")
            return answer


async def seed(system: Seeded) -> Mapping[str, str]:
    """Fills in what is missing; returns passwords by e-mail address.

    Raises:
        ConfigurationError: a service runs with production settings.
    """
    for name, settings in system.settings.items():
        if settings.environment == "production":
            raise ConfigurationError(f"{name} has production settings: demo data does not belong there")
    await first_admin(system.databases["user"], Passwords(), *ADMIN)
    async with aiohttp.ClientSession() as session:
        client = Client(session, system.urls["gateway"])
        tokens = await asyncio.gather(*(person(client, email, name, word) for (email, name), word in PEOPLE.items()))
        await pay_first(client, tokens[0])
        await grant(client)
    return dict([ADMIN, *((email, password) for (email, _), password in PEOPLE.items())])


async def person(client: Client, email: str, name: str, password: str) -> str:
    """An account with a wallet and a bill of each provider; its access token."""
    new_user = {"email": email, "password": password, "name": name}
    await client.call("POST", "/api/users", body=new_user, accept=(201, 409))
    tokens = await client.call("POST", "/api/sessions", body={"email": email, "password": password})
    token = str(tokens["access_token"])
    await client.call("POST", "/api/payments/wallet", token=token)
    there = await client.call("GET", "/api/bills?limit=100", token=token)
    references = {bill["reference"] for bill in there["items"]}
    for number, (provider, payee) in enumerate(DEMO_PROVIDERS.items()):
        reference = f"{provider.split()[0].upper()}-2026-{number + 1:04}"
        if reference in references:
            continue
        bill = {
            "provider": provider,
            "reference": reference,
            "amount": _AMOUNTS.get(provider, "20.0000000"),
            "payee": payee,
            "due_at": (datetime.now(UTC) + timedelta(days=7 + 3 * number)).isoformat(),
        }
        await client.call("POST", "/api/bills", body=bill, token=token)
    return token


async def grant(client: Client) -> None:
    """A coupon that anybody can use once, and money in the wallet that billpay pays back from."""
    email, password = ADMIN
    tokens = await client.call("POST", "/api/sessions", body={"email": email, "password": password})
    admin = str(tokens["access_token"])
    coupon = {"code": COUPON, "percent": 10, "expires_at": (datetime.now(UTC) + timedelta(days=365)).isoformat()}
    await client.call("POST", "/api/coupons", body=coupon, token=admin, accept=(201, 409))
    await client.call("POST", "/api/payments/refund-wallet", token=admin)


async def pay_first(client: Client, token: str) -> None:
    """One of the bills is paid, so that there is a history to look at."""
    bills = await client.call("GET", "/api/bills?limit=100", token=token)
    first = min(bills["items"], key=lambda bill: str(bill["reference"]))
    if first["status"] != "open":
        return
    payment = await client.call("POST", "/api/payments", body={"bill_id": first["id"]}, token=token, accept=(202,))
    async with asyncio.timeout(_PAYING):
        while payment["status"] not in ("settled", "failed"):
            await asyncio.sleep(0.1)
            payment = await client.call("GET", f"/api/payments/{payment['id']}", token=token)
