"""billpay as it stands, in a process of its own, on each broker: its story holds."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from microkit.cli.demo import tell
from microkit.cli.folder import read_note
from microkit.cli.remote import remote_desk
from microkit.console.desk import Wanted
from microkit.servers.ports import free_ports
from reference.billpay.system import system
from tests.announced import announced

SERVICES = [service.name for service in system.services]


@pytest.fixture(params=["redis", "kafka"])
def bus_url(request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue("redis_url" if request.param == "redis" else "kafka_url")
    return url


@pytest.fixture
def folder(tmp_path: Path, bus_url: str) -> Iterator[Path]:
    """The folder of a running ``up --redis-url`` or ``up --kafka``."""
    ports = dict(zip(SERVICES, free_ports(len(SERVICES)), strict=True))
    environment = {
        **{f"{service.upper()}_PORT": str(port) for service, port in ports.items()},
        "LEDGER_CLOSE_INTERVAL": "100ms",
        "PAYMENT_HORIZON_URL": f"http://127.0.0.1:{ports['ledger']}",
    }
    over = "--kafka" if bus_url.startswith("kafka") else "--redis-url"
    with announced(tmp_path, "--folder", str(tmp_path), over, bus_url, env=environment) as (process, document):
        assert document["bus"] == bus_url
        yield tmp_path
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


def test_a_bill_is_paid_over_a_broker(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    holds = tell("reference.billpay.system:system", folder=folder, json=True)  # what `microkit demo --json` does

    told = json.loads(capsys.readouterr().out)
    assert holds, told["checks"]
    assert told["ok"] is True
    assert told["bill"]["status"] == "settled"
    assert [(event["type"].rpartition(".")[2], event["state"]) for event in told["events"]] == [
        ("PaymentStarted", "published"),
        ("BillSettled", "published"),
        ("PaymentSettled", "published"),
    ]
    assert {"gateway", "payment", "billing"} <= set(told["trace"]["services"])
    asyncio.run(look_into(read_note(folder).console))


async def look_into(console: str) -> None:
    async with remote_desk(console) as desk:
        assert {lag["service"] for lag in await desk.lag(None, None)} >= {"billing"}
        assert {topic["name"] for topic in await desk.topics()} >= {"payment.payments"}
        assert [letter async for letter in desk.letters(Wanted())] == []
        paid = [message["event_type"] async for message in desk.tail("payment.payments", last=50, follow=False)]
        assert "payment.payments.PaymentSettled" in paid
