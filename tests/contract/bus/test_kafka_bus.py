"""The Kafka bus passes the suite that every adapter passes."""

from __future__ import annotations

import pytest

from microkit.bus import Bus, Promises, connect
from microkit.testing.bus_suite import BusSuite


class TestKafkaBus(BusSuite):
    promises = Promises(persistent=True, ordered=True, groups=True, redelivers=True, history=True)
    JOINING = 4.0
    url: str

    @pytest.fixture(autouse=True)
    def _broker(self, kafka_url: str) -> None:
        type(self).url = kafka_url

    async def connect(self) -> Bus:
        return connect(self.url)
