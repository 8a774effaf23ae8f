"""The Kafka bus passes the suite that every adapter passes, on two brokers that speak Kafka's protocol."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from microkit.bus import Bus, Promises, connect
from microkit.testing.bus_faults import BusFaultSuite
from microkit.testing.bus_suite import BusSuite
from microkit.testing.kafka import mock_kafka

ABOUT_ORDER = frozenset(
    {
        "test_messages_of_one_key_arrive_in_their_order",
        "test_a_key_is_never_with_two_members_at_once",
        "test_members_that_join_and_leave_under_load_change_no_order",
        "test_many_publishers_and_members_lose_nothing",
        "test_what_was_released_comes_again_in_its_old_order",
    }
)
"""Scenarios that every adapter holds, on every broker."""


class TestKafkaBus(BusSuite):
    promises = Promises(persistent=True, ordered=True, groups=True, redelivers=True, history=True)
    JOINING = 4.0
    excused = {  # noqa: RUF012  it is the class's
        "test_members_that_come_and_go_lose_nothing": "tansu names a leader that has left, and the group waits for it",
        "test_members_that_leave_as_soon_as_they_join_spoil_nothing": "tansu names a leader that has left",
        "test_the_lag_is_what_is_not_acknowledged": "tansu tells the end of the log wrongly: 1 for a batch",
        "test_topics_are_listed_with_the_number_of_their_messages": "tansu tells the end of the log wrongly",
    }

    @pytest.fixture(autouse=True)
    def _broker(self, kafka_url: str) -> None:
        self.url = kafka_url

    async def connect(self) -> Bus:
        assert self.url is not None
        return connect(self.url)


@pytest.fixture(scope="module")
def mock_url() -> Iterator[str]:
    with mock_kafka() as url:
        yield url


@pytest.mark.slow
class TestKafkaBusOnTheMockCluster(BusSuite):
    promises = TestKafkaBus.promises
    JOINING = 8.0
    excused = {  # noqa: RUF012  it is the class's
        "test_topics_are_listed_with_their_groups": "the mock cluster cannot list groups",
    }

    @pytest.fixture(autouse=True)
    def _broker(self, mock_url: str, request: pytest.FixtureRequest) -> None:
        """Members join slowly here: the short form is what the other broker cannot hold, and what is about order."""
        name = request.node.originalname
        short = request.config.getoption("--bus-stress") == 1
        if short and name not in TestKafkaBus.excused and name not in ABOUT_ORDER:
            pytest.skip("held on tansu; here in the stress form")
        self.url = mock_url

    async def connect(self) -> Bus:
        assert self.url is not None
        return connect(self.url)


class TestKafkaBusFaults(BusFaultSuite):
    promises = TestKafkaBus.promises
    JOINING = TestKafkaBus.JOINING
    excused = {"test_the_broker_may_be_restarted_in_mid_stream": "both brokers forget everything when they end"}  # noqa: RUF012  it is the class's

    @pytest.fixture(autouse=True)
    def _broker(self, kafka_url: str) -> None:
        self._url = kafka_url

    async def connect(self) -> Bus:
        return connect(self._url)
