"""Dead letters on real brokers go back to work: for the group that gave them up, in their order, and never lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any
from uuid import uuid4

import pytest

from microkit.bus import Bus, ConsumerRuntime, Delivery, Subscription, connect
from microkit.bus.dead_letter import SUFFIX, dead_letter
from microkit.bus.letter import REDRIVE_GROUP, REPLAYS, Letter, Which
from microkit.bus.port import PublishFailed, Stored
from microkit.bus.redrive import BusLetters, RedriveFailed, Redriving, redrive
from microkit.errors import ConfigurationError, UndecodableMessage
from microkit.message import Message
from microkit.telemetry import Telemetry

pytestmark = pytest.mark.anyio

ALL = Redriving()


@pytest.fixture(params=["redis", "kafka"])
async def any_bus(request: pytest.FixtureRequest) -> AsyncIterator[Bus]:
    made = connect(request.getfixturevalue(f"{request.param}_url"))
    await made.start()
    yield made
    await made.close()


@pytest.fixture
async def bus(redis_url: str) -> AsyncIterator[Bus]:
    made = connect(redis_url)
    await made.start()
    yield made
    await made.close()


@pytest.fixture
def topic() -> str:
    return f"t{uuid4().hex[:12]}.orders"


def message(topic: str, key: str, number: int) -> Message:
    return Message(topic, key, f'{{"n": {number}}}'.encode(), {"ce_id": str(uuid4()), "ce_type": "shop.Placed"})


def letter(topic: str, key: str, number: int, *, group: str = "stock", **headers: str) -> Message:
    given = message(topic, key, number)
    given = Message(given.topic, given.key, given.value, {**given.headers, **headers})
    return dead_letter(Delivery(given, group, 0, number), "broken", "it broke", 10)


async def letters_of(bus: Any, topic: str) -> list[Letter]:
    return [each async for each in BusLetters(bus).letters([topic])]


def values(messages: Sequence[Message]) -> list[bytes]:
    return [each.value for each in messages]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


async def sent_to(bus: Any, topic: str) -> list[Message]:
    return [stored.message async for stored in bus.read(topic)]


async def test_only_the_group_that_gave_a_message_up_handles_it_again(
    any_bus: Bus, topic: str, telemetry: Telemetry
) -> None:
    handled: dict[str, list[Message]] = {f"{topic}.stock": [], f"{topic}.mail": []}
    stock, mail = handled
    broken = True

    async def handle(delivery: Delivery) -> None:
        if delivery.group == stock and broken:
            raise UndecodableMessage("broken", "it broke")
        handled[delivery.group].append(delivery.message)

    runtime = ConsumerRuntime(any_bus, telemetry)
    for group in handled:
        runtime.add(Subscription(group, (topic,), handle))
    published = [message(topic, "a", 1), message(topic, "a", 2), message(topic, "b", 3), message(topic, "a", 4)]
    await any_bus.publish(published)
    await runtime.start()
    try:
        async with asyncio.timeout(60):
            while len(await letters_of(any_bus, topic)) < 4:
                await asyncio.sleep(0.05)
        await until(lambda: len(handled[mail]) == 4)
        broken = False

        outcomes = [each async for each in redrive(BusLetters(any_bus), Which([topic], key="a"), ALL)]

        assert [(each.refused, each.letter.group) for each in outcomes] == [(None, stock)] * 3
        await until(lambda: len(handled[stock]) == 3)
        assert values(handled[stock]) == values([each for each in published if each.key == "a"])
        again = handled[stock][0]
        assert (again.id, again.key, again.type) == (published[0].id, "a", "shop.Placed")
        assert not any(name.startswith("mk_dlq_") for name in again.headers)
        assert [each.message.key for each in await letters_of(any_bus, topic)] == ["b"]
        behind = message(topic, "a", 5)
        await any_bus.publish([behind])
        await until(lambda: len(handled[mail]) > 4)
        assert values(handled[mail])[4:] == [behind.value], "it came behind the redriven ones, which mail was not given"
    finally:
        await runtime.stop(5)


async def test_a_trial_moves_nothing(bus: Any, topic: str) -> None:
    await bus.publish([letter(topic, "a", number) for number in range(3)])

    outcomes = [each async for each in redrive(BusLetters(bus), Which(), Redriving(dry_run=True))]

    assert [each.refused for each in outcomes] == [None] * 3
    assert len(await letters_of(bus, topic)) == 3
    assert await sent_to(bus, topic) == []


async def test_letters_of_a_key_go_in_their_order_and_each_counts_its_replays(bus: Any, topic: str) -> None:
    await bus.publish([letter(topic, f"key {number % 3}", number) for number in range(250)])

    outcomes = [each async for each in redrive(BusLetters(bus), Which(), ALL)]

    sent = await sent_to(bus, topic)
    assert len(outcomes) == len(sent) == 250
    for key in ("key 0", "key 1", "key 2"):
        mine = values([each for each in sent if each.key == key])
        assert mine == values([message(topic, key, n) for n in range(250) if f"key {n % 3}" == key])
    assert {each.headers[REPLAYS] for each in sent} == {"1"}
    assert {each.headers[REDRIVE_GROUP] for each in sent} == {"stock"}
    assert await letters_of(bus, topic) == []


@pytest.mark.parametrize(
    ("headers", "group", "how", "told"),
    [
        ({REPLAYS: "3"}, "stock", Redriving(), "redriven 3 times already; --max-replays 4 allows another"),
        ({}, "", Redriving(), "it does not say which group gave it up"),
        ({}, "stock", Redriving(known={"mail"}), "nobody has the group stock; name another with --to"),
        ({}, "stock", Redriving(known={"mail"}, to="male"), "nobody has the group male"),
    ],
)
async def test_what_must_not_go_stays_and_says_why(
    bus: Any, topic: str, headers: dict[str, str], group: str, how: Redriving, told: str
) -> None:
    await bus.publish([letter(topic, "a", 1, group=group, **headers)])

    (outcome,) = [each async for each in redrive(BusLetters(bus), Which(), how)]

    assert outcome.refused is not None
    assert told in outcome.refused
    assert len(await letters_of(bus, topic)) == 1
    assert await sent_to(bus, topic) == []


async def test_a_group_that_has_another_name_by_now_gets_the_letters_of_the_old_one(bus: Any, topic: str) -> None:
    await bus.publish([letter(topic, "a", 1, group="store")])

    (outcome,) = [
        each async for each in redrive(BusLetters(bus), Which(), Redriving(to="stock", known={"stock", "mail"}))
    ]

    assert outcome.refused is None
    assert [each.headers[REDRIVE_GROUP] for each in await sent_to(bus, topic)] == ["stock"]


@pytest.mark.parametrize(
    "which",
    [
        Which(key="b"),
        Which(reason="other"),
        Which(groups=["mail"]),
        Which(topics=["no.such.topic"]),
        Which(ids=["nothing"]),
    ],
)
async def test_only_what_is_meant_goes(bus: Any, topic: str, which: Which) -> None:
    await bus.publish([letter(topic, "a", 1)])

    assert [each async for each in redrive(BusLetters(bus), which, ALL)] == []
    assert len(await letters_of(bus, topic)) == 1


async def test_a_letter_is_found_by_its_own_name_and_by_its_events(bus: Any, topic: str) -> None:
    await bus.publish([letter(topic, "a", 1), letter(topic, "a", 2)])
    first, second = await letters_of(bus, topic)
    assert first.id.startswith(f"{topic}/")

    chosen = Which(ids=[first.id, second.message.id])

    assert [each.letter.id async for each in redrive(BusLetters(bus), chosen, ALL)] == [first.id, second.id]


class Breaking:
    """A bus that fails where it is told to."""

    def __init__(self, bus: Any, *, publish: set[int] | None = None, remove: bool = False) -> None:
        self._bus = bus
        self._publish = publish or set()
        self._remove = remove

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)

    def read(self, topic: str, *, last: int | None = None, follow: bool = False) -> Any:
        return self._bus.read(topic, last=last, follow=follow)

    async def topics(self) -> Any:
        return await self._bus.topics()

    async def publish(self, messages: Sequence[Message]) -> None:
        await self._bus.publish([each for index, each in enumerate(messages) if index not in self._publish])
        if self._publish:
            raise PublishFailed({index: ValueError("no") for index in self._publish})

    async def remove(self, stored: Sequence[Stored]) -> None:
        if self._remove:
            raise ConnectionError("gone")
        await self._bus.remove(stored)


async def test_who_dies_between_sending_and_forgetting_duplicates_and_loses_nothing(bus: Any, topic: str) -> None:
    await bus.publish([letter(topic, "a", number) for number in range(3)])

    with pytest.raises(ConnectionError):
        [each async for each in redrive(BusLetters(Breaking(bus, remove=True)), Which(), ALL)]

    assert len(await sent_to(bus, topic)) == 3
    assert len(await letters_of(bus, topic)) == 3
    [each async for each in redrive(BusLetters(bus), Which(), ALL)]
    sent = await sent_to(bus, topic)
    assert len(sent) == 6
    assert len({each.id for each in sent}) == 3, "the inbox knows them apart by their ids"
    assert await letters_of(bus, topic) == []


async def test_what_the_broker_refuses_stays(bus: Any, topic: str) -> None:
    await bus.publish([letter(topic, "a", number) for number in range(3)])

    with pytest.raises(RedriveFailed, match="2 letters did not go and are still here"):
        [each async for each in redrive(BusLetters(Breaking(bus, publish={1, 2})), Which(), ALL)]

    assert [each.message.value for each in await letters_of(bus, topic)] == [b'{"n": 1}', b'{"n": 2}']
    assert len(await sent_to(bus, topic)) == 1


async def test_what_dies_again_meanwhile_is_for_the_next_time(bus: Any, topic: str) -> None:
    await bus.publish([letter(topic, "a", 1)])
    outcomes = 0

    async for outcome in redrive(BusLetters(bus), Which(), Redriving(rate=1000)):
        outcomes += 1
        assert outcomes < 5
        again = outcome.letter.redriven("stock")
        await bus.publish([dead_letter(Delivery(again, "stock", 0, 9), "broken", "again", 1)])

    (left,) = await letters_of(bus, topic)
    assert (outcomes, left.replays, left.error) == (1, 1, "again")


async def test_a_message_that_says_nothing_of_its_death_is_listed_and_stays(bus: Any, topic: str) -> None:
    await bus.publish([Message(topic + SUFFIX, "a", b"\xff", {"mk_dlq_attempts": "many", "mk_dlq_time": "soon"})])

    (found,) = await letters_of(bus, topic)

    assert (found.topic, found.group, found.attempts, found.time, found.replays) == (topic, "", 0, None, 0)
    (outcome,) = [each async for each in redrive(BusLetters(bus), Which(), ALL)]
    assert outcome.refused is not None


@pytest.mark.parametrize("wrong", [{"max_replays": 0}, {"rate": 0.0}, {"rate": float("nan")}])
def test_a_pace_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="an example"):
        Redriving(**wrong)
