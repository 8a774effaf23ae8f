"""A database that cannot be used, or will not do: one clear sentence each."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import make_url

from microkit.db import Database
from microkit.db.facts import ServerFacts, Share, server_facts
from microkit.db.failure import DatabaseUnavailable
from microkit.errors import ConfigurationError
from microkit.servers.ports import free_ports
from microkit.telemetry import Telemetry

pytestmark = pytest.mark.anyio


async def refused(url: str, telemetry: Telemetry) -> str:
    database = Database(url, telemetry=telemetry)
    try:
        with pytest.raises(ConfigurationError) as caught:
            await database.start()
    finally:
        await database.close()
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


async def test_a_wrong_password(postgres_role_url: str, telemetry: Telemetry) -> None:
    wrong = make_url(postgres_role_url).set(password="not-it-at-all").render_as_string(hide_password=False)
    sentence = await refused(wrong, telemetry)
    assert "refuses this user with this password" in sentence
    assert "not-it-at-all" not in sentence


async def test_a_database_that_is_not_there(postgres_url: str, telemetry: Telemetry) -> None:
    wrong = make_url(postgres_url).set(database="nowhere").render_as_string(hide_password=False)
    assert "has no database of this name" in await refused(wrong, telemetry)


async def test_a_server_that_is_not_there(telemetry: Telemetry) -> None:
    (port,) = free_ports(1)
    database = Database(f"postgresql+asyncpg://a:b@127.0.0.1:{port}/c", telemetry=telemetry)
    with pytest.raises(DatabaseUnavailable, match="cannot be reached"):
        await database.start()
    await database.close()


async def test_a_file_that_is_no_database(tmp_path: Path, telemetry: Telemetry) -> None:
    (tmp_path / "letter.db").write_text("Dear Sir or Madam, " * 100)
    assert "is no SQLite database" in await refused(f"sqlite+aiosqlite:///{tmp_path}/letter.db", telemetry)


async def test_a_folder_that_cannot_be_made(tmp_path: Path, telemetry: Telemetry) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot be made" in await refused(f"sqlite+aiosqlite:///{tmp_path}/file/x.db", telemetry)


@pytest.mark.skipif(not os.access("/proc/self", os.R_OK), reason="here no folder is read-only even to root")
async def test_a_read_only_folder(telemetry: Telemetry) -> None:
    assert "its folder is there and may be written" in await refused("sqlite+aiosqlite:////proc/x.db", telemetry)


async def test_the_server_tells_what_it_is(database: Database) -> None:
    facts = await server_facts(database)
    assert facts.dialect == database.dialect
    assert facts.trouble is None
    assert abs(facts.clock) < 3600
    if facts.dialect == "postgresql":
        assert facts.connections is not None
        assert facts.version.startswith(str(facts.number // 10_000))
    else:
        assert facts.connections is None


def test_a_server_that_is_too_old_or_takes_no_writes_will_not_do() -> None:
    facts = ServerFacts("postgresql", "13.4", 130_004, 97, 0.0, 0.0, standby=False)
    assert facts.trouble == (
        "the server is PostgreSQL 13.4, and microkit needs 14 or later: upgrade it, or name another server"
    )
    assert replace(facts, number=140_001, version="14.1").trouble is None
    assert "standby" in (replace(facts, number=170_000, standby=True).trouble or "")
    assert "3.35" in (ServerFacts("sqlite", "3.31.1", 3_031_001, None, 0.0, 0.0, standby=False).trouble or "")


def test_fifty_processes_and_a_server_of_a_hundred_connections_do_not_fit() -> None:
    share = Share(pool=10, overflow=5, replicas=50)
    assert share.connections == 800
    assert share.misfit(97) == (
        "50 processes * (10 pool + 5 overflow + 1 to listen) may open 800 connections, and the server allows 97: "
        "put a pooler such as pgbouncer before it (database_pgbouncer), or give it a higher max_connections"
    )
    assert "let pool and overflow be 3 together" in (share.misfit(200) or "")
    assert share.misfit(800) is None
    of_workers = replace(share, replicas=10, workers=5)
    assert of_workers.connections == 800
    assert (of_workers.misfit(97) or "").startswith(
        "10 replicas * 5 workers * (10 pool + 5 overflow + 1 to listen) may"
    )
    assert share.misfit(None) is None
    assert replace(share, pooled=True).misfit(97) is None  # the pooler's own settings bound it
