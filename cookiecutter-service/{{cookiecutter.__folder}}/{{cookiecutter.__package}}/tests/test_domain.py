"""The rules, by themselves."""

from __future__ import annotations

import pytest

from {{ cookiecutter.__package }}.domain import Score


def test_a_rating_is_added_to_those_before() -> None:
    assert Score().rated(5).rated(2) == Score(stars=7, ratings=2)


@pytest.mark.parametrize(
    ("score", "average"),
    [
        (Score(), None),
        (Score(stars=10, ratings=2), None),
        (Score(stars=9, ratings=3), 3.0),
        (Score(stars=11, ratings=3), 3.7),
    ],
)
def test_an_average_is_shown_from_three_ratings_on(score: Score, average: float | None) -> None:
    assert score.average(shown_from=3) == average
