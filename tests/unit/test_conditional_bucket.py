"""The bucket behind the broker of ``up --real``: its listings are localbucket's, found without a walk through all."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import localbucket  # type: ignore[import-untyped]
import pytest

from microkit.servers.conditional_bucket import Handler

KEYS = [
    *(f"c/topics/{topic}/partitions/{number}/{end}" for topic in "ab" for number in (0, 1, 10) for end in "12w"),
    *("c/topics.json", "c/topicsx/1", "c/tops/1", "other/1", "z"),
]
PREFIXES = ["", "c", "c/", "c/topics", "c/topics/", "c/topics/a/", "c/topics/a/partitions/1", "nowhere/", "c/../other/"]
MARKERS = ["", "c/topics/a/partitions/10/1", "c/topics/b/", "a", "zz", "c/topics"]


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    for key in KEYS:
        path = tmp_path / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    return tmp_path


@pytest.mark.parametrize("delimiter", ["", "/"])
@pytest.mark.parametrize("most", [0, 1, 3, 1000])
def test_a_listing_is_what_a_walk_through_all_finds(bucket: Path, delimiter: str, most: int) -> None:
    ours: Any = object.__new__(Handler)
    theirs: Any = object.__new__(localbucket.S3Handler)
    for prefix, marker, is_prefix in product(PREFIXES, MARKERS, (False, True)):
        asked = (bucket, prefix, delimiter, marker, is_prefix, most)
        assert ours._list_entries(*asked) == theirs._list_entries(*asked), asked[1:]


def test_only_what_the_prefix_points_at_is_looked_at(bucket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    walk = localbucket.os.walk

    def walked(where: Path) -> Any:
        looked.append(str(where))
        return walk(where)

    monkeypatch.setattr(localbucket.os, "walk", walked)
    ours: Any = object.__new__(Handler)
    found, _, _, _ = ours._list_entries(bucket, "c/topics/a/partitions/1/", "", "", False, 1000)
    assert [key for key, _ in found] == [f"c/topics/a/partitions/1/{end}" for end in "12w"]
    assert looked == [str(bucket / "c/topics/a/partitions/1")]
