"""Why a cluster cannot be used, in the words of who has to mend it.

A question that fails says no more than that there was no answer. What librdkafka knows beyond that is in its log, some
of it only when ends of connections are told, which in a running client would be noise. Two things it does not know:
whether a broker that hangs up without a word wants TLS or is older than 0.10; and, of one that does not answer at all,
anything.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient, ConfigResource  # type: ignore[attr-defined]  # public, not in __all__

_LOOK: Final = 3.0
"""Seconds to hear what a client says of a cluster that does not answer, or will have it."""
_STEP: Final = 0.25
_ASK: Final = 5.0
_AFTER: Final = r"(?: \(after|$)"
_NOT_KAFKA: Final = (
    "what answers there does not speak Kafka's protocol, or wants TLS: see the port, or write kafka+ssl://"
)

_CAUSES: Final = tuple(
    (re.compile(pattern), said)
    for pattern, said in (
        (
            r"Unsupported SASL mechanism: broker's supported mechanisms: (.*?)" + _AFTER,
            "the broker knows other SASL mechanisms ({}): name one with sasl.mechanism",
        ),
        (
            r"SASL authentication error: (.*?)" + _AFTER,
            "the broker refuses this user with this password ({}): see both in bus_url",
        ),
        (
            r"PLAINTEXT broker listener",
            "the broker speaks no TLS at this port: name the one at which it does, or kafka://",
        ),
        (
            r"certificate verify failed",
            "the broker's certificate cannot be verified: name who signed it with ssl.ca.location, and the host as the "
            "certificate has it",
        ),
        (r"SSL handshake failed: (.*?)" + _AFTER, "there is no TLS connection to the broker ({})"),
        (r"Invalid response size", _NOT_KAFKA),
        (
            r"Disconnected.*in state APIVERSION_QUERY",
            "the broker hangs up without a word: it wants TLS (kafka+ssl://), or is older than Kafka 0.10",
        ),
        (
            r"Disconnected.*in state UP",
            "the broker hangs up when it is asked something: it wants a user and a password before the host",
        ),
        (r"Failed to resolve '(.*?)'", "nobody knows the host {}"),
        (r"(Connection refused)", "nothing listens there ({})"),
    )
)


def why_away(config: Mapping[str, Any]) -> str | None:
    """What the client says of a cluster that does not answer; ``None`` where it knows no more. Blocks."""
    heard = _Heard()
    admin = AdminClient({**config, "log.connection.close": True}, logger=heard.logger)
    until = time.monotonic() + _LOOK
    while time.monotonic() < until:
        with suppress(KafkaException):
            admin.list_topics(timeout=_STEP)
        admin.poll(0)  # hands its log over
        for match, said in heard.matches():
            return said.format(*match.groups())
    return None


def too_old(admin: AdminClient, config: Mapping[str, Any], *, controlled: bool) -> bool:
    """Whether the cluster is older than Kafka 0.11, the first whose messages have headers. Blocks.

    librdkafka tells no version. It refuses what a cluster lacks: to be asked for a topic's settings, and a producer
    that numbers its messages, both of which came with 0.11. There are brokers that lack the first alone; and where none
    is ``controlled``, so that we could make topics, nobody answers it.
    """
    if not controlled:
        return not _numbers(config)
    topic = ConfigResource(ConfigResource.Type.TOPIC, "-")
    for asked in admin.describe_configs([topic], request_timeout=_ASK).values():
        try:
            asked.result(_ASK * 2)
        except KafkaException as error:
            return _is_unsupported(error) and not _numbers(config)
        except TimeoutError:
            return False
    return False


def _numbers(config: Mapping[str, Any]) -> bool:
    heard = _Heard()
    producer = Producer({**config, "enable.idempotence": True, "debug": "eos"}, logger=heard.logger)
    until = time.monotonic() + _LOOK
    while time.monotonic() < until and not heard.says("-> Assigned"):
        try:
            producer.poll(0.02)
        except KafkaException as error:
            return not _is_unsupported(error)
    return True


def _is_unsupported(error: KafkaException) -> bool:
    return bool(error.args[0].code() == KafkaError._UNSUPPORTED_FEATURE)  # noqa: SLF001  librdkafka's own code


class _Heard(logging.Handler):
    """Keeps what a client logs, for nobody else to see."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: list[str] = []
        self.logger = logging.Logger("microkit.bus.kafka.refusal", logging.DEBUG)
        self.logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(record.getMessage())

    def says(self, text: str) -> bool:
        return any(text in line for line in self._lines)

    def matches(self) -> list[tuple[re.Match[str], str]]:
        found = ((pattern.search(line), said) for pattern, said in _CAUSES for line in self._lines)
        return [(match, said) for match, said in found if match is not None]
