"""Events and the envelope they travel in.

The envelope is CloudEvents 1.0 in binary mode: the payload is the message's value, the attributes are headers with the
prefix ``ce_``, as the Kafka binding writes them, on every adapter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from types import UnionType
from typing import Annotated, Any, ClassVar, Final, Literal, Self, TypeVar, Union, get_args, get_origin
from uuid import UUID, uuid4

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import from_json, to_json

from microkit.errors import DefinitionError, UndecodableMessage

Payload = dict[str, Any]
"""An event as JSON has it."""

REPLY_TO: Final = "mk_reply_to"
"""Header of a command: what its reply is to carry as ``IN_REPLY_TO``."""
IN_REPLY_TO: Final = "mk_in_reply_to"
"""Header of whatever is published while a command is handled (*Return Address* and *Correlation Identifier*)."""

DEADLINE: Final = "mk_deadline"
"""Header: when the time ends that the work had which published the message, in milliseconds since 1970 (UTC) by its
machine's clock. It bounds the handlers that say so (``deadline=True``); the others have a time of their own."""

_KEYS = (str, int, UUID, Decimal, date, Enum)
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


class Upcaster(staticmethod):  # type: ignore[type-arg]  # not to be subscripted before Python 3.14
    """Makes a payload of one version into one of the next. Written with :func:`upcast`."""

    def __init__(self, function: Callable[[Payload], Payload], from_version: int) -> None:
        super().__init__(function)
        self.from_version = from_version


def upcast(*, from_version: int) -> Callable[[Callable[[Payload], Payload]], Upcaster]:
    """Says how the payload of an older major version becomes one of the next::

        class BillPaid(Event, topic="billing.bills", key="bill_id", version=2):
            bill_id: UUID
            amount_cents: int

            @upcast(from_version=1)
            @staticmethod
            def in_cents(payload: dict[str, Any]) -> dict[str, Any]:
                return {"bill_id": payload["bill_id"], "amount_cents": round(payload["amount"] * 100)}

    The function gets the payload as JSON has it and may return whatever pydantic can write as JSON. What it returns for
    the newest version is validated like any payload.
    """

    def declare(function: Callable[[Payload], Payload]) -> Upcaster:
        return Upcaster(function, from_version)

    return declare


def _orders(kind: Any) -> bool:
    """Whether values of this type, as text, tell which events belong together."""
    if get_origin(kind) is Annotated:
        return _orders(get_args(kind)[0])
    if get_origin(kind) is Literal:
        return True
    if isinstance(kind, TypeVar):  # of a generic event; what it becomes is looked at then
        return True
    if get_origin(kind) in (Union, UnionType):
        return all(_orders(one) for one in get_args(kind))
    kind = getattr(kind, "__supertype__", kind)  # a NewType
    return isinstance(kind, type) and issubclass(kind, _KEYS)


class Event(BaseModel):
    """Something that happened, in the past tense::

        class BillPaid(Event, topic="billing.bills", key="bill_id"):
            bill_id: UUID
            amount: Decimal

    ``topic`` is where it is published; ``key`` names the field whose value orders it: events of one key are handled one
    after the other. ``version`` is the major version of the schema: a consumer refuses one that is newer than its own,
    and reads an older one through the event's upcasters (:func:`upcast`). A field that is new within a version has a
    default; fields that a consumer does not know are ignored.
    """

    model_config = ConfigDict(frozen=True)

    event_topic: ClassVar[str] = ""
    event_key: ClassVar[str] = ""
    event_version: ClassVar[int] = 1
    event_type: ClassVar[str] = ""
    event_upcasters: ClassVar[Mapping[int, Upcaster]] = {}
    """By the version that each reads: an unbroken row that ends below ``event_version``, or none."""

    _version_text: ClassVar[str] = "1"

    def __init_subclass__(cls, *, topic: str = "", key: str = "", version: int = 1, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.event_topic = topic or cls.event_topic
        cls.event_key = key or cls.event_key
        cls.event_version = version
        cls.event_type = f"{cls.event_topic}.{cls.__name__}"
        cls._version_text = str(version)

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
        kind = cls.model_fields[cls.event_key].annotation
        if not _orders(kind):
            raise DefinitionError(
                f"{cls.__name__}: its key {cls.event_key!r} is a {getattr(kind, '__name__', kind)}. Events of one key "
                "stay in order, so a key is one value that is always written the same, and never absent: take a field "
                "that is a UUID, str, int, date or enumeration, such as bill_id: UUID"
            )
        if cls.event_version < 1:
            raise DefinitionError(f"{cls.__name__}: versions are counted from 1, so {cls.event_version} is none")
        if cls.model_config.get("extra") == "forbid":
            raise DefinitionError(
                f"{cls.__name__}: an event cannot forbid extra fields: a consumer would refuse each message of a "
                "publisher that has one field more. Leave extra out of its model_config"
            )
        cls.event_upcasters = _upcasters(cls)

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
                "ce_schemaversion": self._version_text,
                "content-type": "application/json",
                **(trace or {}),
            },
        )

    @classmethod
    def from_message(cls, message: Message) -> Self:
        """The event that a message carries.

        Raises:
            UndecodableMessage: it has no id, a newer schema version, an older one that no upcaster reads, or a payload
                that does not fit.
        """
        if not message.id:
            raise UndecodableMessage("no-id", "the message has no ce_id header")
        value = message.value
        version = message.headers.get("ce_schemaversion", "1")
        if version != cls._version_text:
            value = cls._upcast(message, version)
        try:
            return cls.model_validate_json(value)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            reason = "not-json" if first["type"] == "json_invalid" else "invalid-payload"
            where = "/".join(str(part) for part in first["loc"])
            raise UndecodableMessage(
                reason, f"{cls.__name__}{f' at {where}' if where else ''}: {first['msg']}"
            ) from None

    @classmethod
    def _upcast(cls, message: Message, version: str) -> bytes:
        """The payload as this service's version of the event has it."""
        if not (version.isascii() and version.isdigit()):
            raise UndecodableMessage("bad-version", f"ce_schemaversion {version[:40]!r} is not a number")
        number = int(version[:9])
        if number > cls.event_version:
            raise UndecodableMessage(
                "newer-version", f"{cls.event_type} has version {version[:9]}; this service knows {cls.event_version}"
            )
        if number == cls.event_version:
            return message.value  # written with a leading zero
        if number not in cls.event_upcasters:
            oldest = min(cls.event_upcasters, default=cls.event_version)
            raise UndecodableMessage(
                "older-version", f"{cls.event_type} has version {number}; this service reads {oldest} and newer"
            )
        try:
            payload = from_json(message.value)
        except ValueError as error:
            raise UndecodableMessage("not-json", f"{cls.__name__}: {error}") from None
        if not isinstance(payload, dict):
            raise UndecodableMessage("invalid-payload", f"{cls.__name__}: the payload is no JSON object")
        for older in range(number, cls.event_version):
            payload = _upcasted(cls.event_upcasters[older], payload, cls.__name__)
        try:
            return to_json(payload)
        except ValueError as error:
            raise UndecodableMessage("upcast-failed", f"{cls.__name__} from version {number}: {error}") from None


def _upcasters(event: type[Event]) -> Mapping[int, Upcaster]:
    """The upcasters that an event's class declares itself.

    Raises:
        DefinitionError: they do not lead to its version, step by step.
    """
    found: dict[int, Upcaster] = {}
    for name, declared in vars(event).items():
        if not isinstance(declared, Upcaster):
            continue
        version = declared.from_version
        if version in found:
            raise DefinitionError(f"{event.__name__} has two upcasters from version {version}; {name} is the second")
        if not 1 <= version < event.event_version:
            raise DefinitionError(
                f"{event.__name__}.{name} reads version {version}, which is not older than the event's own, "
                f"{event.event_version}. Raise version= in the class line"
            )
        found[version] = declared
    for version in range(min(found, default=event.event_version), event.event_version):
        if version not in found:
            raise DefinitionError(
                f"{event.__name__} has an upcaster from version {min(found)} and none from version {version}, so "
                f"nothing leads to version {event.event_version}. Write one with @upcast(from_version={version})"
            )
    return dict(sorted(found.items()))


def _upcasted(upcaster: Upcaster, payload: Payload, event: str) -> Payload:
    try:
        found = upcaster(payload)
    except Exception as error:  # whatever it is, it would be the same at the next attempt
        raise UndecodableMessage(
            "upcast-failed", f"{event} from version {upcaster.from_version}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(found, dict):
        raise UndecodableMessage(
            "upcast-failed",
            f"{event} from version {upcaster.from_version}: it returned no dict but {type(found).__name__}",
        )
    return found
