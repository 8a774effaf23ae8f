"""The migrations and the tables in the code say the same."""

from __future__ import annotations

import pytest
from microkit import Database
from microkit.db.migration import drift, migrate

from {{ cookiecutter.__package }}.service import service
from {{ cookiecutter.__package }}.tables import Base

pytestmark = pytest.mark.anyio


async def test_migrating_makes_the_tables_that_the_code_expects(database: Database) -> None:
    await migrate(database, service.declared.migrations)

    assert await drift(database, Base.metadata) == []


async def test_migrating_can_be_taken_back(database: Database) -> None:
    await migrate(database, service.declared.migrations)
    await migrate(database, service.declared.migrations, target="base")

    assert await migrate(database, service.declared.migrations) != []
