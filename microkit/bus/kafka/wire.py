"""Between messages and Kafka's records, and between its errors and ours."""

from __future__ import annotations

from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException

from microkit.errors import MicrokitError
from microkit.message import Message


class BrokerRefused(MicrokitError):
    """The broker will not have this message. ``code`` is the name of Kafka's error code."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code


class ConsumerEnded(MicrokitError):
    """The client gave up, or a fault ended it. No ``OSError``, since waiting would not mend it: join anew."""


_FORGOTTEN: Final = frozenset(
    {
        KafkaError.INVALID_PRODUCER_EPOCH,
        KafkaError.INVALID_PRODUCER_ID_MAPPING,
        KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER,
        KafkaError.PRODUCER_FENCED,
        KafkaError.UNKNOWN_PRODUCER_ID,
    }
)
"""The broker does not know this producer any more, or takes it for another: a new one may go on."""

_TRANSPORT: Final = _FORGOTTEN | frozenset(
    {
        KafkaError._ALL_BROKERS_DOWN,  # noqa: SLF001  librdkafka's own codes begin with an underscore
        KafkaError._AUTHENTICATION,  # noqa: SLF001
        KafkaError._DESTROY,  # noqa: SLF001
        KafkaError._FATAL,  # noqa: SLF001  of this producer: the next one may go on
        KafkaError._MSG_TIMED_OUT,  # noqa: SLF001
        KafkaError._PURGE_INFLIGHT,  # noqa: SLF001
        KafkaError._PURGE_QUEUE,  # noqa: SLF001
        KafkaError._QUEUE_FULL,  # noqa: SLF001
        KafkaError._RESOLVE,  # noqa: SLF001
        KafkaError._SSL,  # noqa: SLF001
        KafkaError._TIMED_OUT,  # noqa: SLF001
        KafkaError._TIMED_OUT_QUEUE,  # noqa: SLF001
        KafkaError._TRANSPORT,  # noqa: SLF001
        KafkaError._WAIT_COORD,  # noqa: SLF001
        KafkaError.BROKER_NOT_AVAILABLE,
        KafkaError.KAFKA_STORAGE_ERROR,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.NETWORK_EXCEPTION,
        KafkaError.NOT_ENOUGH_REPLICAS,
        KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError.SASL_AUTHENTICATION_FAILED,
        KafkaError.UNKNOWN,  # the broker had a fault of its own, which says nothing of the message
    }
)


class Rebalancing(Exception):
    """The group is being dealt out anew, and the broker takes no offsets until that is done."""


_REBALANCE: Final = frozenset(
    {
        KafkaError.ILLEGAL_GENERATION,
        KafkaError.REBALANCE_IN_PROGRESS,
        KafkaError.STALE_MEMBER_EPOCH,
        KafkaError.UNKNOWN_MEMBER_ID,
        KafkaError._ASSIGNMENT_LOST,  # noqa: SLF001
    }
)


def is_over(error: KafkaError) -> bool:
    """Whether its producer will send nothing more."""
    return error.fatal() or error.code() in _FORGOTTEN


def reason_of(error: KafkaError) -> Exception:
    """What a send failed with: a ``ConnectionError`` where the way failed, else :class:`BrokerRefused`."""
    if error.code() in _TRANSPORT or error.fatal() or error.retriable():
        return ConnectionError(f"{error.name()}: {error.str()}")
    return BrokerRefused(error.name(), error.str())


def away(error: KafkaException) -> ConnectionError | Rebalancing:
    """The broker is away, as an exception says, or not ready."""
    cause = error.args[0] if error.args else error
    if isinstance(cause, KafkaError) and cause.code() in _REBALANCE:
        return Rebalancing(cause.str())
    return ConnectionError(f"{cause.name()}: {cause.str()}" if isinstance(cause, KafkaError) else str(cause))


def encode(text: str) -> bytes:
    """UTF-8; bytes that were not, come out as they came in."""
    return text.encode("utf-8", "surrogateescape")


def headers_of(message: Message) -> list[tuple[str, str | bytes | None]]:
    """The headers of a record. Names are UTF-8 always, values may be any bytes."""
    return [
        (name if name.isascii() else name.encode("utf-8", "backslashreplace").decode(), encode(value))
        for name, value in message.headers.items()
    ]


def message_of(record: Any) -> Message:
    """The message that a record carries. Of several headers of one name the last one counts; a tombstone is empty."""
    headers: dict[str, str] = {}
    for name, value in record.headers() or ():
        headers[name] = "" if value is None else value.decode("utf-8", "surrogateescape")
    key = record.key()
    return Message(
        record.topic(), "" if key is None else key.decode("utf-8", "surrogateescape"), record.value() or b"", headers
    )
