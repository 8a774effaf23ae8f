"""What the tests of services share: their settings, and one instance of the notes."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from microkit import Instance
from tests.unit.service.notes import notes_service


@pytest.fixture
def settings(database_url: str) -> dict[str, object]:
    return {"database_url": database_url, "port": 0, "migrate_on_start": True}


@pytest.fixture
async def notes(anyio_backend: str, settings: dict[str, object]) -> AsyncIterator[Instance]:
    async with notes_service().instance(settings) as instance:
        yield instance
