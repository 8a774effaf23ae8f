"""``microkit up --real`` on servers that were there before, and ``microkit admin`` about it."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from uuid import uuid4

import pytest

from microkit.cli import main
from microkit.servers.ports import free_ports
from microkit.servers.valkey import ValkeyServer
from microkit.testing.postgres import Cluster
from tests.announced import announced
from tests.unit.cli.command import Ended

Run = Callable[..., Ended]

FULL = os.environ.get("MICROKIT_FAULTS") == "full"
ENDPOINTS = ("health", "info", "breakers", "endpoints", "outbox", "consumers", "log-level", "metrics")

SYSTEM = """
from pydantic import BaseModel
from sqlalchemy import MetaData
from microkit import ANYONE, Contract, Event, Gateway, Route, Service, System, Transaction, get, post

class Said(Event, topic="till.said", key="text"):
    text: str

class Depot(Contract, service="depot", prefix="/depot", allow=ANYONE):
    @get("/stock")
    async def stock(self) -> int: ...

depot = Service("depot", port={depot})

@depot.handles(Depot.stock)
async def stock() -> int:
    return 7

till = Service("till", port={till}, tables=MetaData())
till.client(Depot)

@till.get("/ask", allow=ANYONE)
async def ask(depot: Depot) -> int:
    return await depot.stock()

@till.post("/say", allow=ANYONE)
async def say(tx: Transaction) -> None:
    tx.publish(Said(text="hello"))

@till.on(Said)
async def hear(event: Said) -> None: ...

door = Service("door", port={door})
door.mount("/", Gateway([Route("/api/till", service="till", strip_prefix="/api/till")]), allow=ANYONE)
system = System("{name}", services=[door, till, depot])
"""


@dataclass
class Shop:
    folder: Path
    name: str
    ports: list[int]
    document: Any

    def told(self, run: Run, *arguments: str) -> Any:
        ended = run(*arguments, "--json")
        assert ended.code == 0, ended.err
        return ended.document

    def call(self, url: str, method: str = "GET") -> int:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=30) as answer:
                status: int = answer.status
                return status
        except HTTPError as error:
            return error.code

    def processes(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.document['console']}/fleet", timeout=30) as answer:
            return {each["name"]: each for each in json.load(answer)["processes"]}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command here: a process for each would take longer than what it does."""
    monkeypatch.chdir(tmp_path)

    def go(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["microkit", *arguments])
        capsys.readouterr()
        try:
            main()
        except SystemExit as ended:
            printed = capsys.readouterr()
            return Ended(int(ended.code or 0), printed.out, printed.err)
        raise AssertionError("the command did not end")

    return go


@contextmanager
def running(folder: Path, name: str, *options: str) -> Iterator[Shop]:
    door, till, depot = ports = free_ports(3)
    (folder / "shop.py").write_text(SYSTEM.format(door=door, till=till, depot=depot, name=name))
    environment = {"TILL_WORKERS": "2", "TILL_CLIENTS__DEPOT__TIMEOUT": "300ms"}
    with announced(folder, "shop:system", *options, env=environment, cwd=folder) as (process, document):
        yield Shop(folder, name, ports, document)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


@pytest.mark.timeout(120)
def test_every_endpoint_of_a_running_system_is_read(tmp_path: Path, run: Run) -> None:
    with running(tmp_path, "shop") as shop:
        call_all(shop)
        assert shop.told(run, "admin", "health")["ok"]
        (of_till,) = shop.told(run, "admin", "consumers", "--service", "till")["instances"]
        assert [group["group"] for group in of_till["groups"]] == ["till.hear"]
        url = json.loads((tmp_path / ".microkit" / "up.json").read_text())["admin"]["till"]
        (of_till,) = shop.told(run, "admin", "info", "--url", url)["instances"]
        assert (of_till["instance"], of_till["service"]) == (url, "till")
        (changed,) = shop.told(run, "admin", "log-level", "debug", "--service", "till")["instances"]
        assert (changed["level"], changed["before"]) == ("DEBUG", "INFO")
        refused = run("admin", "log-level", "loud", "--service", "till")
        assert (refused.code, refused.out) == (1, "")
        assert "CRITICAL" in refused.err
        missing = run("admin", "sagas")
        assert missing.err == "microkit: door cannot tell: this service has no sagas\n"
        for what in ENDPOINTS:
            shown = run("admin", what)
            assert shown.code == 0, shown.err
            assert "till" in shown.out
        with_one_away(tmp_path, run)
        # No gateway leads there.
        for what in ENDPOINTS:
            if what not in ("health", "metrics"):  # these are on the service's own port as well
                assert shop.call(f"{shop.document['services'][0]['url']}/api/till/{what}") == 404


def with_one_away(folder: Path, run: Run) -> None:
    """While one instance is restarted, the others are told of."""
    path = folder / ".microkit" / "up.json"
    note = json.loads(path.read_text())
    (dead,) = free_ports(1)
    path.write_text(json.dumps({**note, "admin": {**note["admin"], "depot": f"http://127.0.0.1:{dead}"}}))
    shown = run("admin", "info")
    assert (shown.code, "till" in shown.out) == (0, True), shown.err
    assert shown.err.startswith("microkit: left out: depot. No admin endpoints answer at http://127.0.0.1:")
    health = run("admin", "health", "--json")
    said = {each["instance"]: each["status"] for each in json.loads(health.out)["instances"]}
    assert (health.code, said["depot"], said["till"]) == (1, "down", "up")
    loud = run("admin", "log-level", "debug")
    assert (loud.code, loud.out) == (1, "")
    assert "depot does not change its log level" in loud.err
    path.write_text(json.dumps(note))


@pytest.mark.skipif(not FULL, reason="many processes: the full form of the fault tests")
@pytest.mark.timeout(180)
def test_servers_of_ones_own_are_used_and_what_is_gone_is_seen(
    tmp_path: Path, run: Run, postgres_cluster: Cluster, valkey_server: ValkeyServer
) -> None:
    name = f"shop{uuid4().hex[:8]}"
    servers = ["--database-url", postgres_cluster.url(""), "--redis-url", f"{valkey_server.url}?prefix={name}"]
    with running(tmp_path, name, "--real", *servers) as shop:
        assert {each["kind"] for each in shop.processes().values()} == {"service"}
        call_all(shop)
        health = shop.told(run, "admin", "health")
        (of_till,) = [each for each in health["instances"] if each["instance"] == "till"]
        assert [worker["worker"] for worker in of_till["workers"]] == [1, 2]
        assert of_till["parts"]["database"]["status"] == "up"
        (_, second) = shop.told(run, "admin", "info", "--service", "till")["instances"]
        assert second["instance"] == "till worker 2"
        (database,) = [each["value"] for each in second["settings"] if each["key"] == "TILL_DATABASE_URL"]
        assert f"/{name}_till" in database
        pools = shop.told(run, "pool", "--service", "till")["instances"]
        assert [each["instance"] for each in pools] == ["till worker 1", "till worker 2"]
        (first, *_) = shop.told(run, "admin", "outbox")["instances"]
        assert len(first["relays"]) == 2
        match = ["--match", "request_duration_seconds_count"]
        samples = shop.told(run, "admin", "metrics", "--service", "till", *match)["samples"]
        assert sum(each["value"] for each in samples if each["labels"].get("http_route") == "/say") == 1
        see_what_is_gone(shop, run)


def call_all(shop: Shop) -> None:
    door = shop.ports[0]
    assert shop.call(f"http://127.0.0.1:{door}/api/till/say", "POST") < 300
    assert shop.call(f"http://127.0.0.1:{door}/api/till/ask") == 200


def see_what_is_gone(shop: Shop, run: Run) -> None:
    """An instance that answers no more is seen by those that call it."""
    ask = f"http://127.0.0.1:{shop.ports[1]}/ask"
    os.kill(shop.processes()["depot"]["pid"], signal.SIGSTOP)
    statuses = [shop.call(ask) for _ in range(3)]
    tellers = shop.told(run, "admin", "breakers", "--service", "till")["instances"]
    known = shop.told(run, "admin", "endpoints", "--service", "till")["instances"]
    os.kill(shop.processes()["depot"]["pid"], signal.SIGCONT)
    assert all(status >= 500 for status in statuses)
    breakers = [breaker for each in tellers for breaker in each["breakers"] if breaker["service"] == "depot"]
    assert any(breaker["failures"] or breaker["state"] != "closed" for breaker in breakers), breakers
    assert any(each["services"].get("depot", {}).get("instances") == 1 for each in known), known
    until = time.monotonic() + 60
    while shop.call(ask) != 200:
        assert time.monotonic() < until
        time.sleep(0.1)
