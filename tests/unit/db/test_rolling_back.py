"""A transaction of PostgreSQL that is rolled back where nothing can be sent any more."""

from __future__ import annotations

from typing import Any, cast

import asyncpg  # type: ignore[import-untyped]  # it ships no types
import pytest

from microkit.db.postgresql import PostgresConnection

pytestmark = pytest.mark.anyio


class Preparing:
    """A connection whose session ended behind the answer to BEGIN, while its process stood still: asyncpg waits for the
    end of a statement that nobody prepares, and takes no other."""

    def __init__(self) -> None:
        self.terminated = False

    def is_closed(self) -> bool:
        return self.terminated

    async def execute(self, sql: str) -> Any:
        raise asyncpg.InternalClientError("cannot switch to state 15; another operation (2) is in progress")

    def terminate(self) -> None:
        self.terminated = True


async def test_where_the_driver_waits_for_a_session_that_has_ended_it_is_not_asked_to_roll_back() -> None:
    connection = Preparing()
    unit = PostgresConnection.transaction(cast("PostgresConnection", connection))
    await unit.rollback()
    assert connection.terminated
    await unit.rollback()  # and nothing is asked of a closed one
