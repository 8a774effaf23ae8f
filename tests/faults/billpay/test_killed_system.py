"""billpay in a process of its own, killed with SIGKILL while bills are being paid, and started again.

Whatever the moment: every payment ends settled or compensated, no bill is paid twice, and no money appears or vanishes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import create_async_engine

from microkit.servers.ports import free_ports
from reference.billpay.contracts.ledger import DEMO_PROVIDERS
from reference.billpay.ledger.domain import TOTAL_COINS
from reference.billpay.ledger.tables import AccountRow, LedgerRow
from reference.billpay.system import system

pytestmark = pytest.mark.anyio

FULL = os.environ.get("MICROKIT_FAULTS") == "full"
PAYMENTS = 50 if FULL else 20
USERS = 10
KILLS = 12 if FULL else 3
SERVICES = [service.name for service in system.services]
PAYEE = next(iter(DEMO_PROVIDERS.values()))
FUNDED = Decimal(10_000)
FEE = Decimal("0.00001")


@dataclass
class Billpay:
    """``microkit up`` as a process."""

    folder: Path
    environment: dict[str, str]
    bus: str
    ports: dict[str, int] = field(default_factory=dict)
    process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        command = [
            sys.executable,
            "-m",
            "microkit.cli",
            "up",
            "--json",
            "--console-port",
            "0",
            "--folder",
            str(self.folder),
            {"redis": "--redis-url", "kafka": "--kafka"}.get(self.bus.partition(":")[0], "--bus"),
            self.bus,
        ]
        with (self.folder / "log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *command, stdout=asyncio.subprocess.PIPE, stderr=log, env={**os.environ, **self.environment}
            )
        assert self.process.stdout is not None
        async with asyncio.timeout(60):
            announced = await self.process.stdout.readline()
        assert announced, (self.folder / "log").read_text()[-4000:]
        assert json.loads(announced)["system"] == "billpay"

    async def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        await self.process.wait()

    async def end(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.terminate()
            try:
                async with asyncio.timeout(30):
                    await self.process.wait()
            except TimeoutError:
                self.process.kill()
                await self.process.wait()

    def url(self, service: str) -> str:
        return f"http://127.0.0.1:{self.ports[service]}"


@pytest.fixture(params=["sqlite", "postgresql", *(["sqlite over redis"] if FULL else [])])
def places(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def bus(request: pytest.FixtureRequest, places: str) -> str:
    """In the process that is killed, or a broker that stays."""
    return f"{request.getfixturevalue('redis_url')}&lease=2s" if places.endswith("redis") else "memory://"


@pytest.fixture
def databases(request: pytest.FixtureRequest, places: str) -> Iterator[dict[str, str]]:
    """Where each service keeps its data: the files that ``up`` chooses, or PostgreSQL."""
    if places.startswith("sqlite"):
        yield {}
        return
    cluster = request.getfixturevalue("postgres_cluster")
    names = {service: cluster.create() for service in SERVICES if service != "gateway"}
    yield {f"{service.upper()}_DATABASE_URL": cluster.url(name) for service, name in names.items()}
    for name in names.values():
        cluster.drop(name)


@pytest.fixture
async def billpay(tmp_path: Path, databases: dict[str, str], bus: str) -> AsyncIterator[Billpay]:
    ports = dict(zip(SERVICES, free_ports(len(SERVICES)), strict=True))
    environment = {
        **databases,
        **{f"{service.upper()}_PORT": str(port) for service, port in ports.items()},
        "LEDGER_CLOSE_INTERVAL": "200ms",
        "PAYMENT_HORIZON_URL": f"http://127.0.0.1:{ports['ledger']}",
    }
    running = Billpay(tmp_path, environment, bus, ports)
    await running.start()
    yield running
    await running.end()


@dataclass
class Payer:
    """One user, who pays several bills. Every request is repeated until it is answered, as a good client does."""

    billpay: Billpay
    session: aiohttp.ClientSession
    email: str = field(default_factory=lambda: f"{secrets.token_hex(6)}@example.com")
    password: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    token: str = ""

    async def ask(self, method: str, path: str, body: Any = None, expect: tuple[int, ...] = (200, 201, 202)) -> Any:
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        if method == "POST":
            headers["Idempotency-Key"] = secrets.token_hex(8)
        async with asyncio.timeout(300):
            while True:
                with contextlib.suppress(aiohttp.ClientError, ConnectionError, asyncio.TimeoutError):
                    async with self.session.request(
                        method, self.billpay.url("gateway") + path, json=body, headers=headers
                    ) as answer:
                        if answer.status in expect:
                            return await answer.json()
                        # What says "not now" is asked again; anything else is the test's mistake, or ours.
                        assert answer.status in {409, 429, 502, 503, 504}, f"{method} {path}: {await answer.text()}"
                await asyncio.sleep(0.1)

    async def arrive(self) -> None:
        await self.ask(
            "POST",
            "/api/users",
            {"email": self.email, "password": self.password, "name": "Payer"},
            expect=(201, 409),  # 409: the answer to the first attempt was lost
        )
        await self.log_in()
        await self.ask("POST", "/api/payments/wallet")

    async def log_in(self) -> None:
        self.token = ""
        body = {"email": self.email, "password": self.password}
        self.token = (await self.ask("POST", "/api/sessions", body))["access_token"]

    async def enter_bill(self, number: int, amount: Decimal) -> str:
        bill = {
            "provider": "Lagos Water",
            "reference": f"INV-{number}",
            "amount": str(amount),
            "payee": PAYEE,
            "due_at": "2099-01-01T00:00:00Z",
        }
        return str((await self.ask("POST", "/api/bills", bill))["id"])

    async def pay(self, bill: str) -> str:
        return str((await self.ask("POST", "/api/payments", {"bill_id": bill}))["id"])

    async def final(self, payment: str) -> Any:
        async with asyncio.timeout(300):
            while True:
                found = await self.ask("GET", f"/api/payments/{payment}")
                if found["status"] in {"settled", "failed"}:
                    return found
                await asyncio.sleep(0.2)


async def ledger(billpay: Billpay, path: str) -> Any:
    async with aiohttp.ClientSession() as session, session.get(billpay.url("ledger") + path) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.json()


async def balance_of(billpay: Billpay, address: str) -> Decimal:
    account = await ledger(billpay, f"/accounts/{address}")
    return Decimal(next(line["balance"] for line in account["balances"] if line["asset_type"] == "native"))


async def all_money(billpay: Billpay) -> int:
    """Every balance and the fees that were taken, in stroops, as the ledger's own database has them."""
    url = billpay.environment.get("LEDGER_DATABASE_URL", f"sqlite+aiosqlite:///{billpay.folder}/ledger.db")
    engine = create_async_engine(url)
    async with engine.connect() as connection:
        balances = await connection.scalar(select(func.sum(AccountRow.balance)))
        fees = await connection.scalar(select(LedgerRow.fee_pool).order_by(LedgerRow.sequence.desc()).limit(1))
    await engine.dispose()
    return int(balances or 0) + int(fees or 0)


async def test_payments_under_way_survive_the_kill_of_the_whole_system(billpay: Billpay) -> None:
    before = await balance_of(billpay, PAYEE)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=15)) as session:
        payers = [Payer(billpay, session) for _ in range(USERS)]
        await asyncio.gather(*(payer.arrive() for payer in payers))
        bills = [
            (payers[number % USERS], await payers[number % USERS].enter_bill(number, Decimal(1) + number))
            for number in range(PAYMENTS)
        ]

        paying = asyncio.gather(*(payer.pay(bill) for payer, bill in bills))
        for _ in range(KILLS):
            await asyncio.sleep(random.uniform(0.2, 2.5))
            await billpay.kill()
            await billpay.start()
        payments = await paying
        ended = await asyncio.gather(
            *(payer.final(payment) for (payer, _), payment in zip(bills, payments, strict=True))
        )
        statuses = [await payer.ask("GET", f"/api/bills/{bill}") for payer, bill in bills]
        wallets = [await payer.ask("GET", "/api/payments/wallet") for payer in payers]

    settled = [number for number, payment in enumerate(ended) if payment["status"] == "settled"]
    assert settled, "nothing was paid: the test proves nothing"
    for number, (payment, bill) in enumerate(zip(ended, statuses, strict=True)):
        if payment["status"] == "settled":
            assert bill["status"] == "settled", number
            assert bill["payment_id"] == payment["id"], number
        else:
            assert payment["reason"], number
            assert bill["status"] == "open", number
    hashes = [ended[number]["transaction_hash"] for number in settled]
    assert len(set(hashes)) == len(settled)
    # Paid once each: the payee has the sum and not a stroop more, and each payer has paid that and nothing else.
    assert await balance_of(billpay, PAYEE) - before == sum(Decimal(1) + number for number in settled)
    for number, wallet in enumerate(wallets):
        paid = [Decimal(1) + bill for bill in settled if bill % USERS == number]
        assert Decimal(wallet["balance"]) == FUNDED - sum(paid) - FEE * len(paid), number
    assert await all_money(billpay) == TOTAL_COINS
