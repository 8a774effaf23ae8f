"""The migrations of billpay's services make exactly the tables that their models describe."""

from __future__ import annotations

from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection

from microkit import Service
from microkit.db import Database
from microkit.db.migration import migrate
from reference.billpay.billing.service import service as billing
from reference.billpay.ledger.service import service as ledger
from reference.billpay.payment.service import service as payment
from reference.billpay.user.service import service as user

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("service", [user, payment, billing, ledger], ids=lambda service: service.name)
async def test_migrating_makes_the_tables_of_the_models(service: Service, database: Database) -> None:
    tables = service.declared.tables
    assert tables is not None
    await migrate(database, service.declared.migrations)

    def differences(connection: Connection) -> list[Any]:
        def ours(_: object, name: str | None, kind: str, __: bool, ___: object) -> bool:
            return kind != "table" or name in tables.tables

        options = {"compare_type": True, "include_object": ours}
        return list(compare_metadata(MigrationContext.configure(connection, opts=options), tables))

    async with database.engine.connect() as connection:
        assert await connection.run_sync(differences) == []


@pytest.mark.parametrize("service", [user, payment, billing, ledger], ids=lambda service: service.name)
async def test_migrating_back_leaves_nothing_of_the_service(service: Service, database: Database) -> None:
    tables = service.declared.tables
    assert tables is not None
    await migrate(database, service.declared.migrations)
    await migrate(database, service.declared.migrations, target="base")
    async with database.engine.connect() as connection:
        left = await connection.run_sync(lambda sync: set(connection.dialect.get_table_names(sync)))
    assert not left & set(tables.tables)
