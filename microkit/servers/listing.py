"""The keys of a bucket in order, in memory: a page of a listing costs what is on it, however much there is."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

Page = tuple[list[str], list[str], bool, str]
"""Keys, common prefixes, whether there are more, and what the next page comes after: ``K:<key>`` or ``P:<prefix>``."""


@dataclass
class Listing:
    """Who writes an object of the ``bucket`` says so by :meth:`look_again`. The caller sees to it that one thread at a
    time is in here."""

    bucket: Path
    keys: list[str]
    """Sorted. The order of code points is that of UTF-8, which is S3's."""
    _told: dict[str, str] = field(default_factory=dict)

    def told(self, key: str, tell: Callable[[str], str]) -> str:
        """What a listing says of a key: found by ``tell``, and kept until the object is written."""
        found = self._told.get(key)
        if found is None:
            found = self._told[key] = tell(key)
        return found

    def look_again(self, key: str) -> None:
        """The object may have come, changed or gone."""
        self._told.pop(key, None)
        at = bisect_left(self.keys, key)
        known = self.keys[at : at + 1] == [key]
        there = (self.bucket / key).is_file()
        if there and not known:
            self.keys.insert(at, key)
        elif known and not there:
            del self.keys[at]

    def page(self, prefix: str, delimiter: str, marker: str, marker_is_prefix: bool, most: int) -> Page:
        """At most so many of what begins with ``prefix`` and comes after ``marker``, as ListObjectsV2 has it."""
        keys: list[str] = []
        common: list[str] = []
        last = ""
        at = max(bisect_left(self.keys, prefix), bisect_right(self.keys, marker) if marker else 0)
        if marker and marker_is_prefix:
            at = self._behind(marker, at)
        while at < len(self.keys) and self.keys[at].startswith(prefix):
            if len(keys) + len(common) >= most:
                return keys, common, most > 0, last
            key = self.keys[at]
            end = key.find(delimiter, len(prefix)) if delimiter else -1
            if end < 0:
                keys.append(key)
                last, at = f"K:{key}", at + 1
            else:
                common.append(key[: end + len(delimiter)])
                last, at = f"P:{common[-1]}", self._behind(common[-1], at)
        return keys, common, False, last

    def _behind(self, prefix: str, low: int) -> int:
        """Where the keys end that begin with ``prefix``, from ``low`` on."""
        return bisect_right(self.keys, prefix, low, key=lambda key: key[: len(prefix)])
