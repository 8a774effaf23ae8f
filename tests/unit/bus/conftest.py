"""What the tests of the consumer runtime share."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from microkit.bus.memory import MemoryBus


@pytest.fixture
async def bus() -> AsyncIterator[MemoryBus]:
    bus = MemoryBus()
    await bus.start()
    yield bus
    await bus.close()
