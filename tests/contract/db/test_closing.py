"""What becomes of connections when a database is closed."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from microkit.db import Database
from microkit.telemetry import Telemetry

pytestmark = pytest.mark.anyio


async def test_a_connection_that_is_given_back_after_the_close_is_closed(
    database_url: str, telemetry: Telemetry
) -> None:
    database = Database(database_url, telemetry=telemetry)
    await database.start()
    async with database.transaction() as tx:
        await tx.execute(text("SELECT 1"))
        driver = tx._lease._driver
        await database.close()
        await tx.execute(text("SELECT 1"))
    assert driver.is_closed() if database.dialect == "postgresql" else not driver._running
