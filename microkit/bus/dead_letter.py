"""Dead letters: messages that could not be handled, kept with all that is needed to look into them and redrive them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Final

from microkit.bus.port import Delivery
from microkit.message import Message

SUFFIX: Final = ".dead-letter"
_LONGEST_ERROR: Final = 2000

Bury = Callable[[Message], Awaitable[None]]
"""Puts one dead letter where it lasts. When it raises, the message stays unacknowledged and burying is tried again."""


def dead_letter(delivery: Delivery, reason: str, error: str, attempts: int) -> Message:
    """The dead letter for a delivery: topic ``<topic>.dead-letter``, the original key, value and headers, and why.

    The headers added: ``mk_dlq_reason`` (a slug), ``mk_dlq_error`` (text), ``mk_dlq_group``, ``mk_dlq_topic``,
    ``mk_dlq_partition``, ``mk_dlq_offset``, ``mk_dlq_attempts``, ``mk_dlq_time`` (RFC 3339, UTC).
    """
    message = delivery.message
    return Message(
        topic=message.topic + SUFFIX,
        key=message.key,
        value=message.value,
        headers={
            **message.headers,
            "mk_dlq_reason": reason,
            "mk_dlq_error": error[:_LONGEST_ERROR].encode("utf-8", "backslashreplace").decode(),
            "mk_dlq_group": delivery.group,
            "mk_dlq_topic": message.topic,
            "mk_dlq_partition": str(delivery.partition),
            "mk_dlq_offset": str(delivery.offset),
            "mk_dlq_attempts": str(attempts),
            "mk_dlq_time": datetime.now(UTC).isoformat(),
        },
    )
