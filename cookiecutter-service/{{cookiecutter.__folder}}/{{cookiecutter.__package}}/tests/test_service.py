"""The service as others see it: over HTTP and over the bus, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import aiohttp
import pytest
from microkit import NotFound, PageRequest, RemoteProblem
from microkit.testing.system import SystemUnderTest, as_user

from {{ cookiecutter.__package }}.contracts import (
{%- for name in [cookiecutter.__class, cookiecutter.__class ~ "Added", "New" ~ cookiecutter.__class, cookiecutter.__contract] | sort %}
    {{ name }},
{%- endfor %}
)
from {{ cookiecutter.__package }}.neighbours import Rated

pytestmark = pytest.mark.anyio


async def add(running: SystemUnderTest, name: str = "Lamp") -> {{ cookiecutter.__class }}:
    with as_user(running.token("ada", "editor")):
        return await running.client({{ cookiecutter.__contract }}).create(New{{ cookiecutter.__class }}(name=name))


async def test_what_an_editor_adds_everybody_can_read(running: SystemUnderTest, client: {{ cookiecutter.__contract }}) -> None:
    added = await add(running)

    with as_user(running.token("bob")):
        assert await client.read(added.id) == added
    assert (added.name, added.added_by, added.ratings, added.average) == ("Lamp", "ada", 0, None)


async def test_what_is_added_is_told(running: SystemUnderTest) -> None:
    async with running.listening({{ cookiecutter.__class }}Added) as told:
        added = await add(running)

        assert await told.next() == {{ cookiecutter.__class }}Added({{ cookiecutter.resource }}_id=added.id, name="Lamp")


async def test_only_editors_add(running: SystemUnderTest, client: {{ cookiecutter.__contract }}) -> None:
    with as_user(running.token("bob", "member")), pytest.raises(RemoteProblem) as refused:
        await client.create(New{{ cookiecutter.__class }}(name="Lamp"))

    assert refused.value.status == 403


async def test_nobody_gets_in_without_a_token(running: SystemUnderTest) -> None:
    url = running.urls["{{ cookiecutter.service_name }}"]
    async with aiohttp.ClientSession() as session, session.get(f"{url}/{{ cookiecutter.__path }}") as answer:
        assert answer.status == 401


async def test_what_is_not_there_is_not_found(running: SystemUnderTest, client: {{ cookiecutter.__contract }}) -> None:
    with as_user(running.token("bob")), pytest.raises(NotFound):
        await client.read(uuid4())


async def test_the_list_comes_newest_first_page_by_page(
    running: SystemUnderTest,
    client: {{ cookiecutter.__contract }},
) -> None:
    for name in ("one", "two", "three"):
        await add(running, name)

    with as_user(running.token("bob")):
        first = await client.list(PageRequest(limit=2))
        second = await client.list(PageRequest(limit=2, cursor=first.next_cursor))

    assert [[item.name for item in page.items] for page in (first, second)] == [["three", "two"], ["one"]]
    assert second.next_cursor is None


async def test_a_rating_counts_once_however_often_it_is_delivered(
    running: SystemUnderTest,
    client: {{ cookiecutter.__contract }},
) -> None:
    added = await add(running)
    for _ in range(2):
        await running.publish(Rated(subject_id=added.id, stars=5), source="ratings", message_id="first")
    await running.publish(Rated(subject_id=added.id, stars=2), source="ratings", message_id="second")

    # Events of one key are handled in order: with the last one, all have been.
    with as_user(running.token("bob")):
        async with asyncio.timeout(10):
            while (await client.read(added.id)).average != 3.5:
                await asyncio.sleep(0.01)
        assert (await client.read(added.id)).ratings == 2


async def test_a_rating_of_something_unknown_is_passed_over(
    running: SystemUnderTest,
    client: {{ cookiecutter.__contract }},
) -> None:
    added = await add(running)
    await running.publish(Rated(subject_id=uuid4(), stars=1), source="ratings")
    await running.publish(Rated(subject_id=added.id, stars=4), source="ratings")

    with as_user(running.token("bob")):
        async with asyncio.timeout(10):
            while (await client.read(added.id)).ratings != 1:
                await asyncio.sleep(0.01)
