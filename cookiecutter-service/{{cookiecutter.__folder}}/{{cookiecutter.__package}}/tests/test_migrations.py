"""The migrations keep what is in the tables, in both directions, and make those that the code expects."""

from __future__ import annotations

import pytest
from microkit import Database
from microkit.testing.migrations import check_migrations

from {{ cookiecutter.__package }}.service import service

pytestmark = pytest.mark.anyio


async def test_migrating_makes_the_tables_of_the_code_and_keeps_their_rows_in_both_directions(
    database: Database,
) -> None:
    await check_migrations(service, database)
