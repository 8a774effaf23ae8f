"""What the Kafka adapter does when the broker stands still, forgets, or has more than fits."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, Producer

from microkit.bus import Bus, Delivery, MessagesLost, PublishFailed, connect
from microkit.bus.kafka import KafkaBus
from microkit.bus.kafka import consumer as consumer_module
from microkit.bus.kafka import producer as producer_module
from microkit.bus.kafka.partition import Partition
from microkit.bus.kafka.poller import Poller
from microkit.bus.kafka.wire import BrokerRefused, ConsumerEnded
from microkit.errors import ConfigurationError
from microkit.message import Message
from microkit.servers.kafka import KafkaServer
from microkit.testing.bus_suite import ids, new_name, numbered, numbers, receive, until
from microkit.testing.kafka import kafka

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def own_server() -> Iterator[KafkaServer]:
    """A broker that may be frozen and killed."""
    with kafka() as running:
        yield running


async def publish_until_confirmed(bus: Bus, batch: Sequence[Message]) -> None:
    """As the outbox relay does: what was not confirmed is published again before anything else."""
    async with asyncio.timeout(60):
        while batch:
            try:
                await bus.publish(batch)
                batch = []
            except PublishFailed as error:
                batch = [batch[index] for index in sorted(error.failed)]
            except ConnectionError:
                await asyncio.sleep(0.1)


async def test_a_send_to_a_broker_that_stands_still_ends_and_order_holds_when_it_goes_on(
    own_server: KafkaServer,
) -> None:
    topic = new_name()
    bus = connect(f"{own_server.url}&delivery_timeout=1s")
    await bus.start()
    await publish_until_confirmed(bus, numbered(topic, 5))
    own_server.freeze()
    try:
        # Some may have come in before it stood still.
        with pytest.raises((ConnectionError, PublishFailed), match="not confirmed within 1 s"):
            await bus.publish(numbered(topic, 5, start=5))
    finally:
        own_server.thaw()
    for start in (5, 10):
        await publish_until_confirmed(bus, numbered(topic, 5, start=start))
    got = await receive(await bus.subscribe(new_name(), [topic]), 15)
    first = list(dict.fromkeys(ids(got)))  # what was not confirmed may have arrived: it is there twice
    assert first == numbers(15)
    await bus.close()


async def test_a_topic_that_was_deleted_is_made_anew(own_server: KafkaServer) -> None:
    topic = new_name()
    bus = connect(f"{own_server.url}&delivery_timeout=2s")
    await bus.start()
    await publish_until_confirmed(bus, numbered(topic, 3))
    own_server.restart()  # it comes back without any topic
    await publish_until_confirmed(bus, numbered(topic, 3, start=3))
    got = await receive(await bus.subscribe(new_name(), [topic]), 3)
    assert list(dict.fromkeys(ids(got))) == ["3", "4", "5"]
    await bus.close()


async def test_a_client_that_ended_is_no_outage_and_its_acknowledgements_do_not_hang(
    kafka_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waiting would not mend it: the consumer runtime has to join anew."""
    topic, group = new_name(), new_name()
    bus = connect(kafka_url)
    await bus.start()
    await bus.publish(numbered(topic, 2))
    consumer = await bus.subscribe(group, [topic])
    got = await receive(consumer, 2)

    def fault(*_: object) -> None:
        raise RuntimeError("a fault in the thread")

    monkeypatch.setattr(consumer._poller, "_turn", fault)  # type: ignore[attr-defined]  # this adapter's own
    async with asyncio.timeout(30):
        with pytest.raises(ConsumerEnded, match="a fault in the thread"):
            while True:
                await consumer.fetch(1, 0.1)
        await consumer.ack(got)
        await consumer.close()
    await bus.publish(numbered(topic, 2, start=2))
    successor, found = await bus.subscribe(group, [topic]), set[str]()
    async with asyncio.timeout(60):
        while not found >= {"2", "3"}:  # with the first two, if their acknowledgement came too late
            found.update(ids(await successor.fetch(10, 1.0)))
    await bus.close()


@pytest.mark.parametrize(
    "bad", [Message("", "\ud800", b""), Message("", "1", b"", {"a": "\ud800"})], ids=["key", "header"]
)
async def test_a_message_that_is_no_record_is_refused_alone(kafka_url: str, bad: Message) -> None:
    topic = new_name()
    bus = connect(kafka_url)
    await bus.start()
    with pytest.raises(PublishFailed) as refused:
        await bus.publish([*numbered(topic, 2), replace(bad, topic=topic), *numbered(topic, 2, start=2)])
    assert list(refused.value.failed) == [2]
    assert not isinstance(refused.value.failed[2], OSError)
    assert sorted(ids(await receive(await bus.subscribe(new_name(), [topic]), 4))) == numbers(4)
    await bus.close()


async def test_a_topic_of_dead_letters_takes_larger_messages_than_others_where_it_may(kafka_url: str) -> None:
    bus = connect(kafka_url)
    await bus.start()
    asked: list[tuple[list[str], dict[str, str]]] = []
    topic = new_name()

    class Admin:
        """A cluster that forbids the setting."""

        def create_topics(self, topics: list[Any], **_: object) -> dict[str, Any]:
            asked.append(([each.topic for each in topics], dict(topics[0].config)))
            answer: Future[None] = Future()
            if topics[0].config:
                answer.set_exception(KafkaException(KafkaError(KafkaError.POLICY_VIOLATION)))
            else:
                answer.set_result(None)
            return {each.topic: answer for each in topics}

    assert isinstance(bus, KafkaBus)
    bus._create(Admin(), [topic, f"{topic}.dead-letter"])  # type: ignore[arg-type]  # the one method that is used
    assert asked == [
        ([f"{topic}.dead-letter"], {"max.message.bytes": str(16 * 1024 * 1024)}),
        ([topic, f"{topic}.dead-letter"], {}),
    ]
    await bus.publish(numbered(f"{topic}.dead-letter", 1))  # and a real one takes it
    await bus.close()


async def test_a_message_that_is_too_large_takes_the_later_ones_of_its_key_and_no_others(kafka_url: str) -> None:
    topic = new_name()
    bus = connect(kafka_url)
    await bus.start()
    batch = numbered(topic, 9, keys=3)
    batch[4] = Message(topic, "1", b"x" * 17 * 1024 * 1024, {"ce_id": "4"})
    with pytest.raises(PublishFailed) as refused:
        await bus.publish(batch)
    assert sorted(refused.value.failed) == [4, 7]
    assert all(isinstance(cause, BrokerRefused) for cause in refused.value.failed.values())
    got = await receive(await bus.subscribe(new_name(), [topic]), 7)
    assert sorted(ids(got)) == ["0", "1", "2", "3", "5", "6", "8"]
    await bus.close()


async def test_what_is_read_ahead_is_bounded_in_bytes(kafka_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumer_module, "_BYTES_AHEAD", 2 * 1024 * 1024)
    topic = new_name()
    bus = connect(
        f"{kafka_url}&queued.max.messages.kbytes=1024&fetch.max.bytes=1048576&max.partition.fetch.bytes=1048576"
    )
    await bus.start()
    for number in range(40):
        await bus.publish([Message(topic, "a", b"x" * 500_000, {"ce_id": str(number)})])
    consumer: Any = await bus.subscribe(new_name(), [topic])
    got: list[Delivery] = []
    most = 0
    while len(got) < 40:
        part = await consumer.fetch(1, 5.0)
        await asyncio.sleep(0.02)
        most = max(most, consumer._poller.passed_bytes - consumer._taken_bytes)
        got += part
    assert ids(got) == numbers(40)
    assert most < 8 * 1024 * 1024, "of 20 MB that waited"
    await bus.close()


async def test_what_is_acknowledged_behind_something_open_comes_again_after_the_end_of_its_member(
    kafka_url: str,
) -> None:
    topic, group = new_name(), new_name()
    bus = connect(kafka_url)
    await bus.start()
    gone = await bus.subscribe(group, [topic])
    await bus.publish(numbered(topic, 6))
    got = await receive(gone, 6, ack=False)
    await gone.ack([got[0], got[1], got[3], got[5]])
    await gone.close()
    assert ids(await receive(await bus.subscribe(group, [topic]), 4)) == ["2", "3", "4", "5"]
    await bus.close()


async def test_a_broker_that_is_not_there_is_said_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("microkit.bus.kafka.bus._ASK_SECONDS", 0.5)
    bus = connect("kafka://127.0.0.1:1")
    with pytest.raises(ConnectionError, match="kafka"):
        await bus.start()
    await bus.close()


async def test_a_property_that_librdkafka_does_not_know_is_refused() -> None:
    bus = connect("kafka://127.0.0.1:1?unheard.of=1")
    assert isinstance(bus, KafkaBus)
    with pytest.raises(ConfigurationError, match=r"unheard\.of"):
        await bus.start()


# The parts.


def test_only_the_contiguous_prefix_is_committed() -> None:
    partition = Partition("bills", 0, first=5)
    for offset in (5, 6, 8, 9):  # 7 was compacted away
        partition.hand_out(offset)
    partition.done(6)
    partition.done(9)
    assert partition.position == 5
    partition.done(5)
    assert partition.position == 7
    partition.take_back(8)
    partition.hand_out_again(8, 2)
    partition.done(8)
    partition.done(8)
    assert partition.position == 10


class Owner:
    """What the poller works for, writing down what it is told."""

    def __init__(self) -> None:
        self.free = 10
        self.losses: list[MessagesLost] = []

    def room(self) -> int:
        return self.free

    def assigned(self, marks: Any) -> None: ...
    def arrived(self, records: Any) -> None: ...
    def lost(self, keys: Any) -> None: ...
    def troubled(self, trouble: Any) -> None: ...

    async def revoked(self, keys: Any) -> Any:
        return []

    def missed(self, loss: MessagesLost) -> None:
        self.losses.append(loss)


class Record:
    def __init__(self, offset: int) -> None:
        self._offset = offset

    def __len__(self) -> int:
        return 10

    def error(self) -> None: ...
    def topic(self) -> str:
        return "bills"

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self._offset


class Client:
    """As much of confluent's consumer as a turn of the poller needs."""

    def __init__(self) -> None:
        self.partitions = ["one"]
        self.paused: set[str] = set()

    def assignment(self) -> list[str]:
        return list(self.partitions)

    def pause(self, partitions: list[str]) -> None:
        self.paused |= set(partitions)

    def resume(self, partitions: list[str]) -> None:
        self.paused -= set(partitions)

    def poll(self, _timeout: float) -> None: ...
    def committed(self, _partitions: Any, timeout: float) -> list[Any]:
        return []

    def list_topics(self, *_: Any, timeout: float) -> None: ...


async def test_partitions_that_were_paused_before_a_rebalance_go_on_after_it() -> None:
    owner, client = Owner(), Client()
    poller = Poller(owner, {"group.id": "shop"}, ["bills"], logging.getLogger("test"))
    untyped: Any = client
    owner.free = 0
    poller._full_since = 0.0  # it has been full for long
    poller._turn(untyped)
    assert client.paused == {"one"}
    poller._on_assign(untyped, [])
    client.partitions.append("two")
    poller._turn(untyped)
    assert client.paused == {"one", "two"}, "a newcomer is paused too"
    poller._on_assign(untyped, [])
    owner.free = 10
    poller._turn(untyped)
    assert client.paused == set()


async def test_a_log_that_begins_anew_is_told() -> None:
    owner = Owner()
    poller = Poller(owner, {"group.id": "shop"}, ["bills"], logging.getLogger("test"))
    untyped: Any = Client()
    poller._pass_on(untyped, [Record(7), Record(8)])
    poller._pass_on(untyped, [Record(0), Record(1)])
    await until(lambda: bool(owner.losses), lambda: "nothing was told")
    assert [loss.lost for loss in owner.losses] == [None]
    assert "began anew at offset 0; shop was at 9" in str(owner.losses[0])


async def test_a_client_that_gives_up_is_replaced(own_server: KafkaServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an idempotent one does when a broker that was killed has forgotten its sequence."""
    clients: list[Any] = []

    class GivesUp(Producer):
        def __init__(self, config: Any, **options: Any) -> None:
            super().__init__(config, **options)
            self.well = bool(clients)
            clients.append(self)

        def poll(self, timeout: float = -1) -> int:
            if not self.well and len(self):
                self.well = True
                raise KafkaException(KafkaError(KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER, "forgotten", fatal=True))
            return int(super().poll(timeout))

    monkeypatch.setattr(producer_module, "Producer", GivesUp)
    topic = new_name()
    bus = connect(own_server.url)
    await bus.start()
    await publish_until_confirmed(bus, numbered(topic, 20))
    assert len(clients) == 2
    got = await receive(await bus.subscribe(new_name(), [topic]), 20)
    assert sorted(set(ids(got)), key=int) == numbers(20)
    await bus.close()


async def test_sending_without_a_sequence_keeps_the_order(own_server: KafkaServer) -> None:
    topic = new_name()
    bus = connect(f"{own_server.url}&idempotence=false")
    await bus.start()
    for start in range(0, 300, 100):
        await publish_until_confirmed(bus, numbered(topic, 100, start=start))
    got = await receive(await bus.subscribe(new_name(), [topic]), 300)
    assert ids(got) == numbers(300)
    await bus.close()


def test_what_would_let_a_send_overtake_another_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="idempotence=false is the way"):
        connect("kafka://127.0.0.1:9092?enable.idempotence=false")
    for said in ("max.in.flight=6", "max.in.flight.requests.per.connection=0", "idempotence=false&max.in.flight=1"):
        with pytest.raises(ConfigurationError, match="must not overtake"):
            connect(f"kafka://127.0.0.1:9092?{said}")
    connect("kafka://127.0.0.1:9092?max.in.flight.requests.per.connection=5")


@pytest.mark.parametrize("code", [KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH])
async def test_a_client_whom_the_broker_takes_for_another_is_replaced_and_nothing_is_refused(
    own_server: KafkaServer, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Refused messages are parked for an operator in the end, and nothing is wrong with these."""
    reports: list[Any] = []
    report = producer_module._Batch.report

    def fenced_at_first(self: Any, index: int, error: KafkaError | None, record: object) -> None:
        reports.append(record)
        report(self, index, KafkaError(code) if len(reports) <= 5 else error, record)

    monkeypatch.setattr(producer_module._Batch, "report", fenced_at_first)
    topic = new_name()
    bus = connect(own_server.url)
    await bus.start()
    assert isinstance(bus, KafkaBus)
    with pytest.raises(ConnectionError, match="none of 5 messages"):
        await bus.publish(numbered(topic, 5))
    assert bus._producer is not None
    gone = bus._producer._current
    await publish_until_confirmed(bus, numbered(topic, 5))
    assert len(reports) == 10
    assert bus._producer._current is not gone
    await bus.close()
