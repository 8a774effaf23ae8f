"""``microkit up --real``: each process of billpay, its database server and its broker killed in turn while bills are
entered and paid, every connection to the database ended, and the command itself killed.

Each is started again, nobody helps, nothing is lost, and ``microkit demo`` then finds everything as it should be.

The long form is for a quiet machine, one bus at a time; ``-s`` shows the figures::

    MICROKIT_FAULTS=full pytest tests/faults/billpay/test_real_system.py -n0 -s -k "redis and rolling"

with ``kafka`` for ``redis``, and ``hundred_times``, ``stays_away``, ``backends`` or ``command`` for ``rolling``.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg  # type: ignore[import-untyped]
import pytest

from microkit.servers.ports import free_ports
from microkit.testing.folder import short_lived
from reference.billpay.contracts.ledger import DEMO_PROVIDERS
from reference.billpay.system import system

pytestmark = pytest.mark.anyio

FULL = os.environ.get("MICROKIT_FAULTS") == "full"
full = pytest.mark.skipif(not FULL, reason="two of each service, on both buses: the full form")
SERVICES = [service.name for service in system.services]
RATE = os.environ.get("DRILL_RATE", "60")
"""Requests a second that two cores carry while processes start."""
TERMINATIONS = 5
CLIENTS = 5 if FULL else 1
"""Each does ten things a second, which is what the gateway allows."""
_OF_BILLPAY = "FROM pg_stat_activity WHERE datname LIKE 'billpay%' AND pid <> pg_backend_pid()"
_TERMINATE = f"SELECT count(pg_terminate_backend(pid)) {_OF_BILLPAY}"
_IDLE_IN_TRANSACTION = f"SELECT count(*) {_OF_BILLPAY} AND state LIKE 'idle in%'"


def tell(figures: object) -> None:
    """For who runs it with ``-s``."""
    sys.stderr.write(f"{figures}\n")


@dataclass
class RealSystem:
    """The command as a process, and its console."""

    folder: Path
    arguments: list[str]
    environment: dict[str, str]
    process: asyncio.subprocess.Process | None = None
    announced: dict[str, Any] = field(default_factory=dict)

    async def start(self) -> None:
        command = [sys.executable, "-m", "microkit.cli", "up", "--real", "--json", "--console-port", "0"]
        with (self.folder / "log").open("ab") as errors:
            self.process = await asyncio.create_subprocess_exec(
                *command, "--folder", str(self.folder), *self.arguments,
                stdout=asyncio.subprocess.PIPE, stderr=errors, env=self.environment,
            )  # fmt: skip
        assert self.process.stdout is not None
        line = await asyncio.wait_for(self.process.stdout.readline(), 180)
        assert line, self.log()
        self.announced = json.loads(line)
        tell(f"ready in {self.announced['ready_seconds']} s")

    async def end(self, by: signal.Signals = signal.SIGTERM) -> None:
        process, self.process = self.process, None
        if process is not None:
            process.send_signal(by)
            code = await asyncio.wait_for(process.wait(), 90)
            assert code == (0 if by is signal.SIGTERM else -by), self.log()

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")[-4000:]

    async def processes(self) -> dict[str, dict[str, Any]]:
        async with aiohttp.ClientSession() as session, session.get(f"{self.announced['console']}/fleet") as response:
            return {process["name"]: process for process in (await response.json())["processes"]}

    async def command(self, *arguments: str) -> dict[str, Any]:
        """What a command prints as JSON about the running system."""
        command = [sys.executable, "-m", "microkit.cli", *arguments, "--json", "--folder", str(self.folder)]
        told = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        out, err = await told.communicate()
        assert out, err.decode()[-2000:]
        document: dict[str, Any] = json.loads(out)
        return document

    async def pools(self) -> dict[str, list[dict[str, Any]]]:
        """The pools of each process that has any, as its admin endpoints tell them."""
        admin = json.loads((self.folder / "up.json").read_text())["admin"]
        found: dict[str, list[dict[str, Any]]] = {}
        async with aiohttp.ClientSession() as session:
            for name, url in admin.items():
                async with session.get(f"{url}/pool") as response:
                    found[name] = (await response.json())["pools"]
        return {name: pools for name, pools in found.items() if pools}

    async def database(self) -> asyncpg.Connection[Any]:
        """As who may see and end every connection."""
        server = (await self.processes())["postgresql"]["url"]
        password = (self.folder / "postgresql" / "password").read_text()
        return await asyncpg.connect(f"postgresql://microkit:{password}@{server}/postgres")


@pytest.fixture(params=["redis", *(["kafka"] if FULL else [])])
async def real(request: pytest.FixtureRequest, short_folder: Path) -> AsyncIterator[RealSystem]:
    ports = dict(zip(SERVICES, free_ports(len(SERVICES)), strict=True))
    environment = {
        **os.environ,
        **{f"{service.upper()}_PORT": str(port) for service, port in ports.items()},
        "LEDGER_CLOSE_INTERVAL": "200ms",
        "PAYMENT_HORIZON_URL": f"http://127.0.0.1:{ports['ledger']}",
    }
    arguments = ["--bus", request.param]
    for service in SERVICES if FULL else ():
        arguments += ["--scale", f"{service}=2"] if service != "ledger" else []
    running = RealSystem(short_folder, arguments, environment)
    await running.start()
    yield running
    await running.end()


@pytest.fixture
def short_folder() -> Iterator[Path]:
    with short_lived("mkreal-") as folder:
        yield folder


async def kill_everything(real: RealSystem, away: float, rate: str) -> None:
    """Each process and server in turn, under load: what was acknowledged is there, once, and its events are."""
    count = len(await real.processes())
    drilled = await real.command(
        "drill", "--restarts", str(count), "--rate", rate, "--kill", "--servers", "--away", str(away)
    )
    tell(drilled)
    assert drilled["ok"], (drilled, real.log())
    assert drilled["restarts"] == count


async def end_all_backends(real: RealSystem) -> None:
    """Every connection to the database, several times under load."""
    database = await real.database()
    async with AsyncExitStack() as sessions:
        clients = [
            await Client.signed_in(await sessions.enter_async_context(aiohttp.ClientSession()), real)
            for _ in range(CLIENTS)
        ]
        working = [asyncio.create_task(client.enter_bills()) for client in clients for _ in range(4)]
        for _ in range(TERMINATIONS):
            await asyncio.gather(*(client.successes_in_a_row(10) for client in clients))
            assert await database.fetchval(_TERMINATE) > 0
            ended = time.monotonic()
        await asyncio.gather(*(client.successes_in_a_row(20) for client in clients))
        for client in clients:
            client.ended = True
        await asyncio.gather(*working)
    last = max((failure for client in clients for failure in client.failures), default=ended)
    reasons = sum((client.reasons for client in clients), Counter[str]())
    tell(
        f"{TERMINATIONS} terminations, {sum(client.requests for client in clients)} requests, without success: "
        f"{dict(reasons)}; the last of them {max(0.0, last - ended):.2f} s after the last termination"
    )
    await until_nothing_is_held(real, database)
    await database.close()


async def until_nothing_is_held(real: RealSystem, database: asyncpg.Connection[Any]) -> None:
    async with asyncio.timeout(60):
        while True:
            # The engines and relays hold one for a moment now and then; what leaked is held in every look.
            pools = await real.pools()
            held = [pool["holders"] for of_process in pools.values() for pool in of_process if pool["used"]]
            if not held and await database.fetchval(_IDLE_IN_TRANSACTION) == 0:
                break
            await asyncio.sleep(0.05)
    may_be = sum(pool["size"] for of_process in pools.values() for pool in of_process) + len(pools)
    there = await database.fetchval(f"SELECT count(*) {_OF_BILLPAY}")
    tell(f"{there} connections, of at most {may_be}; none held, none idle in transaction")
    assert {name.partition("-")[0] for name in pools} == {*SERVICES} - {"gateway"}
    assert 0 < there <= may_be


async def kill_the_command(real: RealSystem) -> None:
    """Its processes end with it, and the next start finds all that was there."""
    first = await real.command("demo")
    assert first["ok"], first
    async with aiohttp.ClientSession() as session:
        client = await Client.signed_in(session, real)
        working = asyncio.create_task(client.enter_bills())
        await client.successes_in_a_row(8)
        before = await real.processes()
        await real.end(signal.SIGKILL)
        client.ended = True
        await working
    await real.start()
    left = [name for name, process in before.items() if is_running(process["pid"])]
    assert not left, "the next start waits until all of the killed one have ended"
    async with aiohttp.ClientSession() as session:
        await client.sign_in(session, real)
        assert client.entered <= await client.bills()


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@dataclass
class Client:
    """Somebody who enters bills, and knows which of them were acknowledged."""

    session: aiohttp.ClientSession
    url: str
    email: str = field(default_factory=lambda: f"{secrets.token_hex(6)}@example.com")
    password: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    ended: bool = False
    requests: int = 0
    entered: set[str] = field(default_factory=set)
    reasons: Counter[str] = field(default_factory=Counter)
    failures: list[float] = field(default_factory=list)
    in_a_row: int = 0

    @classmethod
    async def signed_in(cls, session: aiohttp.ClientSession, real: RealSystem) -> Client:
        made = cls(session, "")
        await made.sign_in(session, real, new=True)
        return made

    async def sign_in(self, session: aiohttp.ClientSession, real: RealSystem, *, new: bool = False) -> None:
        self.session = session
        self.url = (await real.processes())["gateway"]["url"]
        session.headers.popall("Authorization", None)
        account = {"email": self.email, "password": self.password}
        if new:
            async with session.post(f"{self.url}/api/users", json={**account, "name": "Payer"}) as response:
                assert response.status == 201, await response.text()
        async with session.post(f"{self.url}/api/sessions", json=account) as response:
            assert response.status == 201, await response.text()
            session.headers["Authorization"] = f"Bearer {(await response.json())['access_token']}"

    async def enter_bills(self) -> None:
        while not self.ended:
            await self.enter_bill()
            await asyncio.sleep(0.4)  # what the gateway lets one person do

    async def enter_bill(self) -> None:
        self.requests += 1
        reference = secrets.token_hex(8)
        bill = {
            "provider": "Lagos Water",
            "reference": reference,
            "amount": "1",
            "payee": next(iter(DEMO_PROVIDERS.values())),
            "due_at": "2099-01-01T00:00:00Z",
        }
        headers = {"Idempotency-Key": reference}
        try:
            async with self.session.post(f"{self.url}/api/bills", json=bill, headers=headers) as response:
                reason = "" if response.status == 201 else str(response.status)
        except aiohttp.ClientError as error:
            reason = type(error).__name__
        if reason:
            self.reasons[reason] += 1
            self.failures.append(time.monotonic())
            self.in_a_row = 0
        else:
            self.entered.add(reference)
            self.in_a_row += 1

    async def successes_in_a_row(self, count: int) -> None:
        self.in_a_row = 0
        async with asyncio.timeout(90):
            while self.in_a_row < count:
                await asyncio.sleep(0.02)

    async def bills(self) -> set[str]:
        found: set[str] = set()
        cursor = ""
        while True:
            async with self.session.get(f"{self.url}/api/bills?limit=100{cursor}") as response:
                page = await response.json()
            found |= {bill["reference"] for bill in page["items"]}
            if not page.get("next_cursor"):
                return found
            cursor = f"&cursor={page['next_cursor']}"


@pytest.mark.skipif(FULL, reason="the full form does each of these alone, for longer, on both buses")
@pytest.mark.timeout(400)
async def test_whatever_is_killed_is_started_again_and_recovers_without_help(real: RealSystem) -> None:
    await kill_everything(real, 0, "20")
    await end_all_backends(real)
    await kill_the_command(real)


@full
@pytest.mark.timeout(1200)
async def test_what_is_killed_and_stays_away_for_ten_seconds_is_recovered_from(real: RealSystem) -> None:
    await kill_everything(real, 10, str(min(20, int(RATE))))
    last = await real.command("demo")
    assert last["ok"], last


@full
@pytest.mark.timeout(1200)
async def test_all_backends_may_be_ended_under_load(real: RealSystem) -> None:
    await end_all_backends(real)


@full
@pytest.mark.timeout(1200)
async def test_the_command_may_be_killed_and_started_again(real: RealSystem) -> None:
    for _ in range(3):
        await kill_the_command(real)


@full
@pytest.mark.timeout(1200)
async def test_a_hundred_rolling_restarts_are_not_noticed(real: RealSystem) -> None:
    rolling = await real.command("drill", "--restarts", "100", "--rate", RATE)
    tell(rolling)
    assert rolling["ok"], rolling


@full
@pytest.mark.timeout(1200)
async def test_what_is_killed_a_hundred_times_loses_nothing(real: RealSystem) -> None:
    killed = await real.command("drill", "--restarts", "100", "--rate", RATE, "--kill")
    tell(killed)
    assert killed["ok"], killed
