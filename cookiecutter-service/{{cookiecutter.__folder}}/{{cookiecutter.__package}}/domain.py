"""What {{ cookiecutter.service_name }} knows by itself: no database, no network, nothing asynchronous."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Score:
    """The stars that something was given in all, and by how many ratings."""

    stars: int = 0
    ratings: int = 0

    def rated(self, stars: int) -> Score:
        """The score after one more rating."""
        return Score(self.stars + stars, self.ratings + 1)

    def average(self, *, shown_from: int) -> float | None:
        """The mean, to one decimal; ``None`` while there are fewer than ``shown_from`` ratings, which say little."""
        if self.ratings < shown_from:
            return None
        return round(self.stars / self.ratings, 1)
