"""The Redis adapter, on a real Valkey server, passes the suite that every adapter passes."""

from __future__ import annotations

import pytest

from microkit.bus import Bus, Promises, connect
from microkit.testing.bus_suite import BusSuite


class TestRedisBus(BusSuite):
    promises = Promises(persistent=True, ordered=True, groups=True, redelivers=True, history=True)

    @pytest.fixture(autouse=True)
    def _server(self, redis_url: str) -> None:
        self.url = f"{redis_url}&lease=2s"

    async def connect(self) -> Bus:
        return connect(self.url)
