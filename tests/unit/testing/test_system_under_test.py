"""Events of a system under test: put on its bus, and heard from it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from microkit import Event, Service, System, Transaction
from microkit.errors import UndecodableMessage
from microkit.message import Message
from microkit.testing.system import SystemUnderTest, run_system

pytestmark = pytest.mark.anyio


class Asked(Event, topic="echo.asked", key="word"):
    word: str


class Answered(Event, topic="echo.answered", key="word"):
    word: str


class Sighed(Event, topic="echo.answered", key="word"):
    word: str


echo = Service("echo")


@echo.on(Asked)
async def answer(event: Asked, tx: Transaction) -> None:
    tx.publish(Sighed(word=event.word), Answered(word=event.word))


@pytest.fixture
async def running(anyio_backend: str, tmp_path: Path, database_url: str) -> AsyncIterator[SystemUnderTest]:
    settings = {"echo": {"database_url": database_url}}
    async with run_system(System("echoes", [echo]), tmp_path, settings=settings) as started:
        yield started


async def test_an_event_that_a_test_publishes_is_handled_and_the_answer_is_heard(running: SystemUnderTest) -> None:
    async with running.listening(Answered) as answers:
        await running.publish(Asked(word="hello"))
        await running.publish(Asked(word="goodbye"))

        assert {(await answers.next()).word for _ in range(2)} == {"hello", "goodbye"}


async def test_one_message_id_is_one_event_however_often_it_is_published(running: SystemUnderTest) -> None:
    async with running.listening(Answered) as answers:
        for _ in range(3):
            await running.publish(Asked(word="hello"), message_id="1")
        again = await running.publish(Asked(word="hello"), message_id="2")
        await running.publish(Asked(word="hello"), message_id="1")
        await running.publish(Asked(word="end"), message_id="3")

        words = [(await answers.next()).word for _ in range(3)]

        assert again.id == "2"
        assert sorted(words) == ["end", "hello", "hello"]
        with pytest.raises(TimeoutError, match=r"no Answered came within 0\.2 s"):
            await answers.next(within=0.2)


async def test_what_was_published_before_is_not_heard(running: SystemUnderTest) -> None:
    async with running.listening(Answered) as answers:
        await running.publish(Asked(word="before"))
        await answers.next()

    async with running.listening(Answered) as answers:
        await running.publish(Asked(word="after"))
        assert (await answers.next()).word == "after"


async def test_a_payload_that_does_not_fit_its_event_is_no_event(running: SystemUnderTest) -> None:
    async with running.listening(Answered) as answers:
        headers = {"ce_id": "1", "ce_source": "echo", "ce_type": Answered.event_type}
        await running.running.bus.publish([Message(Answered.event_topic, "x", b'{"word": 1}', headers)])
        with pytest.raises(UndecodableMessage):
            await answers.next()
