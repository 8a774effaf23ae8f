"""How the garbage collector is set once everything has started."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from microkit.cli.steady import YOUNG, settle


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = gc.get_threshold()
    gc.enable()  # whatever another test of this process has left
    yield
    gc.unfreeze()
    gc.set_threshold(*before)


class Knot:
    """An object that only the collector can free."""

    def __init__(self) -> None:
        self.itself = self


def test_what_start_up_made_is_walked_no_more() -> None:
    kept = [[number] for number in range(1_000)]
    settle()
    assert gc.get_freeze_count() > len(kept)
    assert all(one is not kept for one in gc.get_objects())


def test_what_a_few_dozen_requests_hold_starts_no_collection_and_cycles_are_found_all_the_same() -> None:
    settle()
    collections = [generation["collections"] for generation in gc.get_stats()]
    under_way = [[number] for number in range(YOUNG // 2)]
    assert [generation["collections"] for generation in gc.get_stats()] == collections
    collected = sum(generation["collected"] for generation in gc.get_stats())
    for _ in range(2 * YOUNG):
        Knot()
    assert sum(generation["collected"] for generation in gc.get_stats()) - collected > YOUNG // 2
    assert len(under_way) == YOUNG // 2
