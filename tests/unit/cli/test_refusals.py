"""What a command says when it cannot: one sentence that names the thing and says what to do, exit code 1, no stack."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url

from microkit.servers.ports import free_ports
from microkit.servers.valkey import ValkeyServer
from tests.conditions import fill, read_only, small_disk
from tests.unit.cli.command import Command, Ended
from tests.unit.cli.proxy import rewriting

PURSE = """
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from microkit import Service, System

class Base(DeclarativeBase): ...

class CoinRow(Base):
    __tablename__ = "coin"
    id: Mapped[int] = mapped_column(primary_key=True)

coins = Service("coins", port={port}, tables=Base.metadata)
system = System("{name}", services=[coins])
"""


@dataclass
class Purse:
    """One service with a database: started by ``run``, started by ``up``, and looked at by ``doctor``."""

    command: Command
    module: str

    def run(self, **env: str) -> str:
        """The sentence with which ``microkit run`` ends."""
        return sentence(self.command.here("run", "coins", "--system", f"{self.module}:system", env=self.env(env)))

    def up(self, *arguments: str, **env: str) -> str:
        return sentence(self.command.here("up", f"{self.module}:system", "--console-port", "0", *arguments, env=env))

    def doctor(self, what: str, *arguments: str, **env: str) -> str:
        """What doctor says of one thing."""
        ended = self.command.here(
            "doctor", "--system", f"{self.module}:system", "--json", *arguments, env=self.env(env)
        )
        (found,) = [each for each in ended.document["findings"] if each["what"] == what]
        assert (ended.code, found["verdict"]) == (1, "error"), found
        assert "Traceback" not in ended.err
        return str(found["said"])

    @staticmethod
    def env(env: dict[str, str]) -> dict[str, str]:
        return {"COINS_MIGRATE_ON_START": "true", **env}


def sentence(ended: Ended) -> str:
    assert ended.code == 1, ended
    assert "Traceback" not in ended.out + ended.err
    (line,) = [line for line in ended.err.splitlines() if line.startswith("microkit: ")]
    return line.removeprefix("microkit: ")


@pytest.fixture
def purse(command: Command, request: pytest.FixtureRequest) -> Purse:
    module = "purse_" + re.sub(r"\W", "_", request.node.name)
    (command.folder / f"{module}.py").write_text(PURSE.format(port=command.ports[1], name="purse"))
    return Purse(command, module)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", 4) as folder:
        yield folder


def test_a_full_disk(purse: Purse, disk: Path) -> None:
    fill(disk)
    full = f"the disk of {disk} is full (0 MiB left): make room, or name another file in the URL"
    url = f"sqlite+aiosqlite:///{disk}/coins.db"
    assert purse.run(COINS_DATABASE_URL=url) == f"the database {url} cannot be used: {full}"
    assert purse.doctor("database", COINS_DATABASE_URL=url) == full
    said = purse.up("--folder", str(disk / "here"))
    assert re.fullmatch(
        r"The folder \S+ cannot be written \(No space left on device\)[:;] choose another with --folder", said
    )
    elsewhere = full.replace("name another file in the URL", "choose another folder")
    assert purse.doctor("folder", "--folder", str(disk)) == elsewhere


def test_a_folder_that_is_read_only(purse: Purse, tmp_path: Path) -> None:
    with read_only(tmp_path / "fixed") as folder:
        url = f"sqlite+aiosqlite:///{folder}/coins.db"
        said = f"{folder}/coins.db cannot be written: let this user write in {folder}, or name another file in the URL"
        assert purse.run(COINS_DATABASE_URL=url) == f"the database {url} cannot be used: {said}"
        assert purse.doctor("database", COINS_DATABASE_URL=url) == said
        here = f"The folder {folder} cannot be written (Read-only file system): choose another with --folder"
        assert purse.up("--folder", str(folder)) == here
        assert purse.up("--real", "--folder", str(folder)) == here


def test_a_wrong_password_of_postgresql(purse: Purse, postgres_role_url: str) -> None:
    wrong = make_url(postgres_role_url).set(password="sesame-sesame").render_as_string(hide_password=False)
    why = "the server refuses this user with this password; see both in the URL"
    for said in (purse.run(COINS_DATABASE_URL=wrong), purse.doctor("database", COINS_DATABASE_URL=wrong)):
        assert said.startswith("the database postgresql+asyncpg://guarded:***@")
        assert said.endswith(f" cannot be opened: {why}")
        assert "sesame" not in said


@pytest.fixture
def guarded_valkey(tmp_path: Path) -> Iterator[ValkeyServer]:
    class Guarded(ValkeyServer):
        def command(self) -> list[Any]:
            return [*super().command(), "--requirepass", "the-right-password"]

        def answers(self, connection: Any) -> bool:
            connection.sendall(b"PING\r\n")
            return bool(connection.recv(64).startswith(b"-NOAUTH"))

    server = Guarded(tmp_path)
    server.start()
    yield server
    server.stop()


def test_a_wrong_password_of_the_bus(purse: Purse, guarded_valkey: ValkeyServer) -> None:
    url = f"redis://:sesame-sesame@127.0.0.1:{guarded_valkey.port}/0"
    expected = re.compile(
        r"The bus redis://:\*\*\*@127\.0\.0\.1:\d+/0 cannot be reached: redis: .*(WRONGPASS|password).*; see the user "
        r"and the password in bus_url; see that it runs, and that its address and password are right"
    )
    for said in (purse.run(COINS_BUS_URL=url), purse.doctor("bus", COINS_BUS_URL=url)):
        assert expected.fullmatch(said), said
        assert "sesame" not in said


def test_a_server_of_an_older_version(purse: Purse, postgres_url: str, postgres_cluster: Any) -> None:
    number = int(postgres_cluster.psql("SHOW server_version_num"))
    version = postgres_cluster.psql("SHOW server_version").split()[0]
    old = "13.4".ljust(len(version), "0")
    told = {
        number.to_bytes(4, "big"): (130_004).to_bytes(4, "big"),
        version.encode(): old.encode(),
    }
    socket = next(Path(postgres_cluster.socket).glob(".s.PGSQL.*[0-9]"))
    with rewriting(str(socket), told) as port:
        url = make_url(postgres_url).set(host="127.0.0.1", port=port, query={}).render_as_string(hide_password=False)
        said = f"the server is PostgreSQL {old}, and microkit needs 14 or later: upgrade it, or name another server"
        assert purse.run(COINS_DATABASE_URL=url) == f"COINS_DATABASE_URL: {said}"
        assert purse.doctor("database", COINS_DATABASE_URL=url) == said


def test_a_python_with_an_older_sqlite(purse: Purse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 31, 1))
    monkeypatch.setattr(sqlite3, "sqlite_version", "3.31.1")
    said = "Python's SQLite is 3.31.1, and microkit needs 3.35 or later: use a Python that was built with a newer one"
    assert purse.run() == f"COINS_DATABASE_URL: {said}"
    assert purse.doctor("database") == said


def test_a_bus_of_an_older_version(purse: Purse, valkey_server: Any) -> None:
    # redis_version is what Redis says; Valkey says 7.2.4 there, and its own beside it.
    told = {b"valkey_version:": b"valkey_verslon:", b"redis_version:7.": b"redis_version:6."}
    with rewriting(valkey_server.port, told) as port:
        url = f"redis://127.0.0.1:{port}/0"
        for said in (purse.run(COINS_BUS_URL=url), purse.doctor("bus", COINS_BUS_URL=url)):
            assert re.fullmatch(
                r"bus_url: the server is version 6\.[\d.]+; Redis 7 or Valkey is needed: upgrade it, or name another",
                said,
            ), said


def test_the_data_of_an_older_postgresql_are_not_touched(purse: Purse, tmp_path: Path) -> None:
    data = tmp_path / "here" / "postgresql" / "data"
    data.mkdir(parents=True)
    (data / "PG_VERSION").write_text("13\n")
    said = re.compile(
        rf"the data in {re.escape(str(data.parent))} are PostgreSQL 13's, and this is PostgreSQL \d+: move them "
        "over with pg_dump, or choose another folder with --folder"
    )
    assert said.fullmatch(purse.up("--real", "--folder", str(tmp_path / "here")))
    assert said.fullmatch(purse.doctor("servers", "--folder", str(tmp_path / "here")))


def test_fifty_instances_are_too_many_for_a_hundred_connections(purse: Purse, postgres_url: str) -> None:
    said = purse.doctor("pool", COINS_DATABASE_URL=postgres_url, COINS_REPLICAS="50", COINS_WORKERS="2")
    assert re.fullmatch(
        r"50 replicas \* 2 workers \* \(10 pool \+ 5 overflow \+ 1 to listen\) may open 1600 connections, and the "
        r"server allows \d+: put a pooler such as pgbouncer before it \(database_pgbouncer\), or give it a higher "
        r"max_connections",
        said,
    ), said


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("postgresql+asyncpg://a:b@nowhere.invalid/x", r".*\(.*(known|resolution).*\): see the host.*"),
        ("postgresql+asyncpg://a:b@127.0.0.1:{dead}/x", r".*(refused|Connect call failed).*"),
    ],
    ids=["a name that nobody knows", "a port where nobody listens"],
)
def test_a_server_that_is_not_there(purse: Purse, url: str, why: str) -> None:
    (dead,) = free_ports(1)
    url = url.format(dead=dead)
    masked = re.escape(url.replace("a:b@", "a:***@"))
    for ask in (purse.run, lambda **env: purse.doctor("database", **env)):
        said = ask(COINS_DATABASE_URL=url)
        assert re.fullmatch(rf"the database {masked} cannot be reached: {why}", said), said


@pytest.mark.parametrize("kind", ["redis", "kafka"])
def test_a_bus_that_is_not_there(purse: Purse, kind: str) -> None:
    (dead,) = free_ports(1)
    url = f"{kind}://127.0.0.1:{dead}"
    for ask in (lambda **env: purse.doctor("bus", **env), purse.run)[: 1 if kind == "kafka" else 2]:
        said = ask(COINS_BUS_URL=url)
        assert said.startswith(f"The bus {url} cannot be reached: {kind}: ")
        assert said.endswith("; see that it runs, and that its address and password are right")
