"""Where kept answers are: in memory, bounded in bytes, the least recently used leave; or in Redis (``redis.py``)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Protocol

from microkit.gateway.caching.entry import Entry

Vary = tuple[str, ...]


class CacheStore(Protocol):
    """Entries by key. ``base`` names a URL; what varies under it is found by the headers that its entries name.

    A store that is away finds nothing and keeps nothing; it raises nothing.
    """

    async def find(self, base: str, asked: Mapping[bytes, bytes]) -> Entry | None:
        """The entry for a request with these headers."""
        ...

    async def keep(self, base: str, asked: Mapping[bytes, bytes], vary: Sequence[str], entry: Entry) -> None:
        """Keeps an entry that varies by the headers ``vary`` (lower case)."""
        ...

    async def drop(self, base: str) -> None:
        """Forgets all entries of the URL."""
        ...

    async def close(self) -> None:
        """Gives back what it holds."""
        ...


def varied_key(vary: Sequence[str], asked: Mapping[bytes, bytes]) -> str:
    """What tells a request from others to the same URL, as far as the answer varies by it."""
    told = sha256()
    for name in vary:
        value = asked.get(name.encode("latin-1"))
        told.update(name.encode("latin-1") + (b"\0-" if value is None else b"\0+" + b" ".join(value.split())) + b"\n")
    return told.hexdigest()[:32]


class MemoryStore:
    """At most ``total`` bytes."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._size = 0
        self._urls: OrderedDict[str, tuple[Vary, dict[str, Entry]]] = OrderedDict()

    @property
    def size(self) -> int:
        """Bytes that are held."""
        return self._size

    async def find(self, base: str, asked: Mapping[bytes, bytes]) -> Entry | None:
        found = self._urls.get(base)
        if found is None:
            return None
        self._urls.move_to_end(base)
        return found[1].get(varied_key(found[0], asked))

    async def keep(self, base: str, asked: Mapping[bytes, bytes], vary: Sequence[str], entry: Entry) -> None:
        known = self._urls.get(base)
        # What varies by other headers than before would be found by the wrong ones.
        if known is not None and known[0] != tuple(vary):
            self._forget(base)
            known = None
        if known is None:
            known = self._urls[base] = (tuple(vary), {})
            self._size += _overhead(base)
        key = varied_key(vary, asked)
        before = known[1].pop(key, None)
        self._size += entry.size - (before.size if before is not None else 0)
        known[1][key] = entry
        self._urls.move_to_end(base)
        self._shrink()

    async def drop(self, base: str) -> None:
        self._forget(base)

    async def close(self) -> None:
        self._urls.clear()
        self._size = 0

    def _shrink(self) -> None:
        while self._size > self._total and self._urls:
            oldest, (_, entries) = next(iter(self._urls.items()))
            if len(self._urls) == 1 and len(entries) > 1:
                self._size -= entries.pop(next(iter(entries))).size  # one URL that varies without end
                continue
            self._forget(oldest)

    def _forget(self, base: str) -> None:
        found = self._urls.pop(base, None)
        if found is not None:
            self._size -= _overhead(base) + sum(entry.size for entry in found[1].values())


def _overhead(base: str) -> int:
    return 200 + len(base)
