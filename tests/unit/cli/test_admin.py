"""``microkit up --real`` on servers that were there before, and ``microkit admin`` about it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from uuid import uuid4

import pytest

from microkit.servers.ports import free_ports
from microkit.servers.valkey import ValkeyServer
from microkit.testing.postgres import Cluster

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

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "microkit.cli", *arguments],
            cwd=self.folder, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    def told(self, *arguments: str) -> Any:
        ended = self.run(*arguments, "--json")
        assert ended.returncode == 0, ended.stderr
        return json.loads(ended.stdout)

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
def shop(tmp_path: Path, postgres_cluster: Cluster, valkey_server: ValkeyServer) -> Iterator[Shop]:
    door, till, depot = ports = free_ports(3)
    name = f"shop{uuid4().hex[:8]}"
    (tmp_path / "shop.py").write_text(SYSTEM.format(door=door, till=till, depot=depot, name=name))
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
        [sys.executable, "-m", "microkit.cli", "up", "shop:system", "--real", "--json", "--console-port", "0",
         "--database-url", postgres_cluster.url(""), "--redis-url", f"{valkey_server.url}?prefix={name}"],
        cwd=tmp_path,
        env={**os.environ, "TILL_WORKERS": "2", "TILL_CLIENTS__DEPOT__TIMEOUT": "300ms"},
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        announced = process.stdout.readline()
        assert announced, (tmp_path / "log").read_text()
        yield Shop(tmp_path, name, ports, json.loads(announced))
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.timeout(120)
def test_servers_of_ones_own_are_used_and_every_endpoint_is_read(shop: Shop) -> None:
    door, till, _ = shop.ports
    assert {each["kind"] for each in shop.processes().values()} == {"service"}
    assert shop.call(f"http://127.0.0.1:{door}/api/till/say", "POST") == 204
    assert shop.call(f"http://127.0.0.1:{door}/api/till/ask") == 200

    health = shop.told("admin", "health")
    assert health["ok"]
    (of_till,) = [each for each in health["instances"] if each["instance"] == "till"]
    assert [worker["worker"] for worker in of_till["workers"]] == [1, 2]
    assert of_till["parts"]["database"]["status"] == "up"

    (_, second) = shop.told("admin", "info", "--service", "till")["instances"]
    assert second["instance"] == "till worker 2"
    (database,) = [each["value"] for each in second["settings"] if each["key"] == "TILL_DATABASE_URL"]
    assert f"/{shop.name}_till" in database
    assert "***" in database

    pools = shop.told("pool", "--service", "till")["instances"]
    assert [each["instance"] for each in pools] == ["till worker 1", "till worker 2"]
    consumers = shop.told("admin", "consumers")["instances"]
    assert {group["group"] for each in consumers for group in each["groups"]} == {"till.hear"}
    outboxes = shop.told("admin", "outbox")["instances"]
    assert sum(len(each["relays"]) for each in outboxes[:1]) == 2
    samples = shop.told("admin", "metrics", "--service", "till", "--match", "request_duration_seconds_count")["samples"]
    assert sum(each["value"] for each in samples if each["labels"].get("http_route") == "/say") == 1
    levels = shop.told("admin", "log-level", "debug", "--service", "till")["instances"]
    assert levels[0]["level"] == "DEBUG"
    refused = shop.run("admin", "log-level", "loud", "--service", "till")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "CRITICAL" in refused.stderr
    missing = shop.run("admin", "sagas")
    assert missing.stderr == "microkit: door cannot tell: this service has no sagas\n"
    for what in ("health", "info", "breakers", "endpoints", "outbox", "consumers", "log-level", "metrics"):
        shown = shop.run("admin", what)
        assert shown.returncode == 0, shown.stderr
        assert "till" in shown.stdout
    # No gateway leads there.
    for what in ("info", "log-level", "pool", "breakers", "endpoints", "outbox", "consumers"):
        assert shop.call(f"http://127.0.0.1:{door}/api/till/{what}") == 404

    # An instance that is gone is seen by those that call it.
    os.kill(shop.processes()["depot"]["pid"], signal.SIGSTOP)
    statuses = [shop.call(f"http://127.0.0.1:{till}/ask") for _ in range(3)]
    assert all(status >= 500 for status in statuses)
    tellers = shop.told("admin", "breakers", "--service", "till")["instances"]
    known = shop.told("admin", "endpoints", "--service", "till")["instances"]
    os.kill(shop.processes()["depot"]["pid"], signal.SIGCONT)
    breakers = [breaker for each in tellers for breaker in each["breakers"] if breaker["service"] == "depot"]
    assert any(breaker["failures"] or breaker["state"] != "closed" for breaker in breakers), breakers
    assert any(each["services"].get("depot", {}).get("instances") == 1 for each in known), known
    until = time.monotonic() + 60
    while shop.call(f"http://127.0.0.1:{till}/ask") != 200:
        assert time.monotonic() < until
        time.sleep(0.1)
