"""The Redis adapter, on a real Valkey server, passes the suite that every adapter passes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from microkit.bus import Bus, Promises, connect
from microkit.servers.valkey import ValkeyServer
from microkit.testing.bus_faults import BusFaultSuite
from microkit.testing.bus_suite import BusSuite
from microkit.testing.valkey import valkey

PROMISES = Promises(persistent=True, ordered=True, groups=True, redelivers=True, history=True)


class TestRedisBus(BusSuite):
    promises = PROMISES

    @pytest.fixture(autouse=True)
    def _server(self, redis_url: str) -> None:
        self.url = f"{redis_url}&lease=2s"

    async def connect(self) -> Bus:
        assert self.url
        return connect(self.url)


class TestRedisBusFaults(BusFaultSuite):
    promises = PROMISES
    server: ValkeyServer

    @pytest.fixture(autouse=True)
    def _server(self) -> Iterator[None]:
        with valkey(durable=True) as self.server:  # else a kill may take what was confirmed
            yield

    def restart(self) -> None:
        self.server.restart()

    async def connect(self) -> Bus:
        return connect(f"{self.server.url}?lease=2s")
