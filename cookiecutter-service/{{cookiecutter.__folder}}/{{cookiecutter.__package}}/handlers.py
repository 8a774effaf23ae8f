"""What {{ cookiecutter.service_name }} does when it is asked, and when something was rated."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from uuid import UUID, uuid4

from microkit import NotFound, Page, PageRequest, Principal, Transaction
from sqlalchemy import select

from {{ cookiecutter.__package }}.contracts import (
{%- for name in [cookiecutter.__class, cookiecutter.__class ~ "Added", "New" ~ cookiecutter.__class] | sort %}
    {{ name }},
{%- endfor %}
)
from {{ cookiecutter.__package }}.domain import Score
from {{ cookiecutter.__package }}.neighbours import Rated
from {{ cookiecutter.__package }}.settings import Settings
from {{ cookiecutter.__package }}.tables import {{ cookiecutter.__class }}Row

_log = logging.getLogger(__name__)


async def create(
    body: New{{ cookiecutter.__class }},
    tx: Transaction,
    caller: Principal,
    settings: Settings,
) -> {{ cookiecutter.__class }}:
    row = {{ cookiecutter.__class }}Row(
        id=uuid4(),
        name=body.name,
        added_by=caller.subject,
        added_at=datetime.now(UTC),
        stars=0,
        ratings=0,
    )
    tx.add(row)
    tx.publish({{ cookiecutter.__class }}Added({{ cookiecutter.resource }}_id=row.id, name=row.name))
    return _shown(row, settings)


async def read({{ cookiecutter.resource }}_id: UUID, tx: Transaction, settings: Settings) -> {{ cookiecutter.__class }}:
    row = await tx.get({{ cookiecutter.__class }}Row, {{ cookiecutter.resource }}_id)
    if row is None:
        raise NotFound("There is no such {{ cookiecutter.__words }}")
    return _shown(row, settings)


async def list_all(page: PageRequest, tx: Transaction, settings: Settings) -> Page[{{ cookiecutter.__class }}]:
    rows, cursor = await tx.page(
        select({{ cookiecutter.__class }}Row),
        page,
        by=({{ cookiecutter.__class }}Row.added_at, {{ cookiecutter.__class }}Row.id),
        descending=True,
    )
    return Page(items=[_shown(row, settings) for row in rows], next_cursor=cursor)


async def count_rating(event: Rated, tx: Transaction) -> None:
    """Counts a rating; once, because the transaction also records that the event was handled."""
    row = await tx.find(
        {{ cookiecutter.__class }}Row,
        {{ cookiecutter.__class }}Row.id == event.subject_id,
        for_update=True,
    )
    if row is None:
        _log.info("something unknown was rated", extra={"subject_id": str(event.subject_id)})
        return
    score = Score(row.stars, row.ratings).rated(event.stars)
    row.stars, row.ratings = score.stars, score.ratings


def _shown(row: {{ cookiecutter.__class }}Row, settings: Settings) -> {{ cookiecutter.__class }}:
    return {{ cookiecutter.__class }}(
        id=row.id,
        name=row.name,
        added_by=row.added_by,
        added_at=row.added_at,
        ratings=row.ratings,
        average=Score(row.stars, row.ratings).average(shown_from=settings.average_from),
    )
