"""Behind a pooler that lends server connections by the transaction, as pgbouncer does."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, make_url, select, text
from sqlalchemy.exc import DBAPIError

from microkit.db import Database, Transaction
from microkit.db.failure import DatabaseUnavailable
from microkit.db.migration import create_tables, migrate
from microkit.db.options import PoolOptions
from microkit.errors import ConfigurationError
from microkit.telemetry import Telemetry
from tests.contract.db.pooler import pooled

pytestmark = pytest.mark.anyio


def through(url: str, port: int) -> str:
    return make_url(url).set(host="127.0.0.1", port=port, query={}).render_as_string(hide_password=False)


def socket_of(cluster: Any) -> str:
    return str(next(Path(cluster.socket).glob(".s.PGSQL.*[0-9]")))


async def test_many_transactions_share_few_server_connections(
    postgres_url: str, postgres_cluster: Any, telemetry: Telemetry, coin: Any
) -> None:
    async with pooled(socket_of(postgres_cluster), 2) as (pooler, port):
        database = Database(
            through(postgres_url, port), telemetry=telemetry, options=PoolOptions(pgbouncer=True),
            statement_timeout=7.0, pool_timeout=60.0,
        )  # fmt: skip
        await database.start()
        await create_tables(database, coin.metadata)

        async def add(tx: Transaction, number: int) -> tuple[int, str]:
            await tx.execute(insert(coin).values(id=number, name=f"coin {number}"))
            found = await tx.scalar(select(coin.name).where(coin.id == number))
            assert found == f"coin {number}"
            limit: str = await tx.scalar(text("SHOW statement_timeout"))
            pid: int = await tx.scalar(text("SELECT pg_backend_pid()"))
            return pid, limit

        done = await asyncio.gather(*(database.run(partial(add, number=n)) for n in range(40)))
        assert {limit for _, limit in done} == {"7s"}
        assert len({pid for pid, _ in done}) == 2
        assert pooler.lent > 40
        async with database.transaction(read_only=True) as tx:
            assert len(await tx.scalars(select(coin.id))) == 40
            assert await tx.scalar(text("SELECT count(*) FROM pg_prepared_statements")) == 0
        await database.close()


STEP = """
from alembic import op
revision = "0001"
down_revision = None
def upgrade():
    op.execute("CREATE TABLE turn AS SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted")
"""
TURN = text("SELECT pg_advisory_lock(:key)").bindparams(key=int.from_bytes(b"microkit"))
LEFT = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")


async def test_migrations_take_turns_and_leave_neither_a_lock_nor_a_setting_with_the_pooler(
    postgres_url: str, postgres_cluster: Any, telemetry: Telemetry, tmp_path: Path
) -> None:
    scripts = tmp_path / "till" / "migrations"
    (scripts / "versions").mkdir(parents=True)
    (scripts / "versions" / "0001_turn.py").write_text(STEP, "utf-8")
    straight = Database(postgres_url, telemetry=Telemetry("other", exporter="none"))
    async with pooled(socket_of(postgres_cluster), 3) as (_, port):
        database = Database(through(postgres_url, port), telemetry=telemetry, options=PoolOptions(pgbouncer=True))
        async with straight.engine.connect() as other:
            await other.execute(TURN)
            with pytest.raises(ConfigurationError, match="another process has been migrating"):
                await migrate(database, scripts, patience=0.2)
            await other.rollback()
            await other.invalidate()

        assert (await migrate(database, scripts))[-1] == "till 0001"

        async with database.transaction(read_only=True) as tx:
            assert await tx.scalar(text("SELECT count(*) FROM turn")) == 1, "it had its turn"
            assert await tx.scalar(LEFT) == 0
        for _ in range(3):  # whichever server connection it is
            async with database.transaction(read_only=True) as tx:
                assert await tx.scalar(text("SHOW client_connection_check_interval")) == "0"
                assert await tx.scalar(text("SHOW lock_timeout")) == "0"
        await database.close()
    await straight.close()


async def test_without_the_setting_the_pooler_refuses_and_the_sentence_says_what_it_said(
    postgres_url: str, postgres_cluster: Any, telemetry: Telemetry
) -> None:
    async with pooled(socket_of(postgres_cluster), 2) as (pooler, port):
        database = Database(through(postgres_url, port), telemetry=telemetry)
        with pytest.raises((ConfigurationError, DatabaseUnavailable, DBAPIError), match="startup parameter"):
            await database.start()
        assert pooler.refused
        await database.close()
