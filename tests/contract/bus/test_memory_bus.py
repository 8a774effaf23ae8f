"""The memory bus passes the suite that every adapter passes."""

from __future__ import annotations

from microkit.bus import Bus, MemoryBus, Promises
from microkit.testing.bus_suite import BusSuite


class TestMemoryBus(BusSuite):
    promises = Promises(persistent=False, ordered=True, groups=True, redelivers=True, history=False)

    async def connect(self) -> Bus:
        return MemoryBus()
