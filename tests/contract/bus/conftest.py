"""Which scenarios of the buses' suites are left to ``nox -s slow``: users of the suites decide that for themselves."""

from __future__ import annotations

import pytest

SLOW = {
    "test_members_that_join_and_leave_under_load_change_no_order",
    "test_members_that_come_and_go_lose_nothing",
    "test_a_key_is_never_with_two_members_at_once",
    "test_a_slow_consumer_takes_no_more_memory_than_what_it_works_on",
    "test_what_a_killed_process_held_is_delivered_again",
}


def pytest_itemcollected(item: pytest.Item) -> None:
    if isinstance(item, pytest.Function) and item.originalname in SLOW:
        item.add_marker(pytest.mark.slow)
