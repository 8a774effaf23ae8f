"""Whose turn it is: no name of a saga starves another, whatever one of them has waiting or under way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

from microkit.saga.leases import Turn
from microkit.saga.store import Held

# The share of the places that the sagas of one name leave to others, one for each other name at most.
_LEFT: Final = 4


class Turns:
    """Counts what each name was given, as fair queueing does: the next place goes to the name that had the fewest.

    ``names`` are the definitions' by fingerprint. Only names that have something waiting are compared, for the database
    numbers what it finds. Since a name that had nothing to do must not be paid for that later, nobody falls behind the
    first by more than ``places``. And because places are given back late by sagas whose steps take long, one name does
    not get all of them. ``limits`` are how many sagas of a definition all engines together may carry on.
    """

    def __init__(self, names: Mapping[str, str], places: int, limits: Mapping[str, int | None] | None = None) -> None:
        self._names = names
        self._limits = limits or {}
        self._places = places
        self._served = dict.fromkeys(names.values(), 0)
        self._most = places - min(len(self._served) - 1, places // _LEFT)

    def of(self, running: Iterable[str]) -> list[Turn]:
        """The turns of all definitions with room, while sagas of the names ``running`` have their places."""
        taken = Counter(running)
        return [
            Turn(fingerprint, self._served[name], room, name, self._limits.get(fingerprint))
            for fingerprint, name in self._names.items()
            if (room := self._most - taken[name]) > 0
        ]

    def given(self, claimed: Iterable[Held]) -> None:
        """Takes down who was served."""
        for held in claimed:
            self._served[held.name] += 1
        first = max(self._served.values())
        for name, served in self._served.items():
            self._served[name] = max(served, first - self._places)
