"""``microkit doctor`` and ``microkit pool``, as a person runs them."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest

from microkit.cli.findings import Demand, together
from microkit.servers.ports import free_ports
from tests.unit.cli.command import Command

STORING = """
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from microkit import ANYONE, Service, System

class Base(DeclarativeBase): ...

class CoinRow(Base):
    __tablename__ = "coin"
    id: Mapped[int] = mapped_column(primary_key=True)

coins = Service("coins", port={port}, tables=Base.metadata)
system = System("purse", services=[coins])
"""


@pytest.fixture
def purse(command: Command) -> Command:
    (command.folder / "purse.py").write_text(STORING.format(port=command.ports[1]))
    return command


def examined(command: Command, **env: str) -> tuple[int, dict[str, dict[str, Any]]]:
    done = command.run("doctor", "coins", "--system", "purse:system", "--json", env=env)
    assert done.stderr == ""
    document = json.loads(done.stdout)
    assert document["ok"] is (done.returncode == 0)
    assert all("\n" not in finding["said"] for finding in document["findings"])
    return done.returncode, {finding["what"]: finding for finding in document["findings"]}


def test_a_service_that_may_start_has_no_errors(purse: Command) -> None:
    code, found = examined(purse)
    assert code == 0
    assert {what: finding["verdict"] for what, finding in found.items()} == {
        "settings": "ok",
        "port": "ok",
        "database": "warning",  # it is made at the first start
        "bus": "ok",
        "registry": "ok",
    }
    assert not (purse.folder / ".microkit").exists()  # looking makes nothing
    table = purse.run("doctor", "--system", "purse:system").stdout
    assert "0 errors" in table


def test_what_is_wrong_is_one_sentence_each(purse: Command) -> None:
    (dead,) = free_ports(1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", purse.ports[1]))
        taken.listen()
        code, found = examined(
            purse,
            COINS_DATABASE_URL=f"postgresql+asyncpg://coins:sesame-sesame@127.0.0.1:{dead}/coins",
            COINS_BUS_URL=f"redis://127.0.0.1:{dead}/0",
            COINS_DISCOVERY_URL=f"consul://127.0.0.1:{dead}",
        )
    assert code == 1
    assert {what: finding["verdict"] for what, finding in found.items()} == {
        "settings": "ok",
        "port": "warning",
        "database": "error",
        "bus": "error",
        "registry": "error",
    }
    assert "cannot be reached" in found["database"]["said"]
    assert "sesame" not in str(found)


def test_a_wrong_setting_is_an_error_that_names_its_key(purse: Command) -> None:
    code, found = examined(purse, COINS_PROT="1")
    assert (code, list(found)) == (1, ["settings"])
    assert "COINS_PROT" in found["settings"]["said"]


def test_a_folder_that_cannot_be_written(purse: Command) -> None:
    (purse.folder / "file").write_text("")
    code, found = examined(purse, COINS_DATABASE_URL="sqlite+aiosqlite:///file/coins.db")
    assert (code, found["database"]["verdict"]) == (1, "error")
    assert "is no folder" in found["database"]["said"]


def test_postgresql_is_looked_at_whole(purse: Command, postgres_url: str) -> None:
    urls = {"COINS_DATABASE_URL": postgres_url, "COINS_DATABASE_REPLICA_URL": postgres_url}
    code, found = examined(purse, **urls, COINS_REPLICAS="50")
    assert code == 1
    assert found["database"]["verdict"] == "ok"
    assert "postgresql" in found["database"]["said"]
    assert found["clock"]["verdict"] == "ok"
    assert "microkit migrate coins" in found["migrations"]["said"]
    assert found["pool"]["said"].startswith("50 processes * (10 pool + 5 overflow + 1 to listen) may open 800")
    assert found["replica"]["verdict"] == "error"
    assert found["replica"]["said"].startswith("50 processes * (10 pool + 5 overflow) may open 750")


def test_services_that_share_a_server_have_to_fit_into_it_together() -> None:
    demands = [
        Demand("billing", "db:5432", 60, 97),
        Demand("payment", "db:5432", 60, 97),
        Demand("user", "b:1", 96, 97),
    ]
    (found,) = together(demands)
    assert found.verdict == "error"
    assert found.said.startswith("together 60 (billing) + 60 (payment) = 120 connections, and db:5432 allows 97")
    assert together(demands[1:]) == []


def test_pool_shows_the_pools_of_a_running_system(purse: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COINS_ADMIN_PORT", "0")
    with purse.up("purse:system"):
        shown = json.loads(purse.run("pool", "--json").stdout)
        assert [each["instance"] for each in shown["instances"]] == ["coins"]
        assert {pool["name"] for pool in shown["instances"][0]["pools"]} == {"read", "write"}
        table = purse.run("pool", "--service", "coins")
        assert (table.returncode, table.stderr) == (0, "")
        assert "write" in table.stdout
        other = purse.run("pool", "--service", "other")
        assert other.returncode == 1
        assert "'other' has no admin endpoints there" in other.stderr


def test_pool_says_where_nothing_answers(command: Command) -> None:
    (dead,) = free_ports(1)
    failed = command.run("pool", "--url", f"http://127.0.0.1:{dead}")
    assert failed.returncode == 1
    assert failed.stderr.startswith(f"microkit: No admin endpoints answer at http://127.0.0.1:{dead}")
