"""The saga engine on both databases."""

from __future__ import annotations

import pytest

from microkit.db import Database
from microkit.saga import together
from tests.contract.saga.trips import Bench


@pytest.fixture
async def bench(database: Database) -> Bench:
    made = Bench(database)
    await made.prepare()
    return made


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine a shared transaction may take as long as one that waits for a lock: its steps begin anew."""
    monkeypatch.setattr(together, "_LONGEST", 60.0)
