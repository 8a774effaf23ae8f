"""Events and the envelope they travel in.

The envelope is CloudEvents 1.0 in binary mode: the payload is the message's value, the attributes are headers with the
prefix ``ce_``, as the Kafka binding writes them, on every adapter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, ClassVar, Self
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, ValidationError

from microkit.errors import DefinitionError, UndecodableMessage

_TOPIC = re.compile(r"[a-z0-9]+([._-][a-z0-9]+)*\Z")


@dataclass(frozen=True, slots=True)
class Message:
    """What a bus carries. Messages of one ``topic`` and one ``key`` stay in order."""

    topic: str
    key: str
    value: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """The CloudEvents id, ``""`` on a message that has none."""
        return self.headers.get("ce_id", "")

    @property
    def type(self) -> str:
        """The CloudEvents type, ``""`` on a message that has none."""
        return self.headers.get("ce_type", "")


class Event(BaseModel):
    """Something that happened, in the past tense::

        class BillPaid(Event, topic="billing.bills", key="bill_id"):
            bill_id: UUID
            amount: Decimal

    ``topic`` is where it is published; ``key`` names the field whose value orders it: events of one key are handled one
    after the other. ``version`` is the major version of the schema: a consumer refuses one it does not know.
    """

    model_config = ConfigDict(frozen=True)

    event_topic: ClassVar[str] = ""
    event_key: ClassVar[str] = ""
    event_version: ClassVar[int] = 1
    event_type: ClassVar[str] = ""

    def __init_subclass__(cls, *, topic: str = "", key: str = "", version: int = 1, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.event_topic = topic or cls.event_topic
        cls.event_key = key or cls.event_key
        cls.event_version = version
        cls.event_type = f"{cls.event_topic}.{cls.__name__}"

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        if not _TOPIC.match(cls.event_topic):
            raise DefinitionError(
                f"{cls.__name__}: topic {cls.event_topic!r} is not lower-case words joined by dots; "
                f'write class {cls.__name__}(Event, topic="billing.bills", key="bill_id")'
            )
        if cls.event_key not in cls.model_fields:
            raise DefinitionError(
                f"{cls.__name__}: key {cls.event_key!r} is none of its fields ({', '.join(cls.model_fields)})"
            )

    def to_message(
        self, source: str, *, trace: Mapping[str, str] | None = None, message_id: str | None = None
    ) -> Message:
        """The event in its envelope. ``source`` is the publishing service; ``trace`` holds the trace headers."""
        key = str(getattr(self, self.event_key))
        return Message(
            topic=self.event_topic,
            key=key,
            value=self.__pydantic_serializer__.to_json(self),
            headers={
                "ce_specversion": "1.0",
                "ce_id": message_id or str(uuid4()),
                "ce_source": source,
                "ce_type": self.event_type,
                "ce_time": datetime.now(UTC).isoformat(),
                "ce_subject": key,
                "ce_partitionkey": key,
                "ce_schemaversion": str(self.event_version),
                "content-type": "application/json",
                **(trace or {}),
            },
        )

    @classmethod
    def from_message(cls, message: Message) -> Self:
        """The event that a message carries.

        Raises:
            UndecodableMessage: it has no id, a newer schema version, or a payload that does not fit.
        """
        if not message.id:
            raise UndecodableMessage("no-id", "the message has no ce_id header")
        version = message.headers.get("ce_schemaversion", "1")
        if not (version.isascii() and version.isdigit()):
            raise UndecodableMessage("bad-version", f"ce_schemaversion {version[:40]!r} is not a number")
        if int(version[:9]) > cls.event_version:
            raise UndecodableMessage(
                "newer-version", f"{message.type} has version {version}; this service knows {cls.event_version}"
            )
        try:
            return cls.model_validate_json(message.value)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            reason = "not-json" if first["type"] == "json_invalid" else "invalid-payload"
            where = "/".join(str(part) for part in first["loc"])
            raise UndecodableMessage(
                reason, f"{cls.__name__}{f' at {where}' if where else ''}: {first['msg']}"
            ) from None
