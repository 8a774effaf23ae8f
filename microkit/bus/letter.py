"""A dead letter as an operator sees it, and the message that it becomes again."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from microkit.bus.dead_letter import SUFFIX
from microkit.message import DEADLINE, Message

REDRIVE_GROUP: Final = "mk_redrive_group"
"""The header that says for which group alone a message came back. The others of its topic have had it."""
REDRIVE_OUTBOX: Final = "mk_redrive_outbox"
"""The header that names the row that holds a message that came back, as ``service/row``: another than its first one."""
REPLAYS: Final = "mk_replays"
"""The header that counts how often a message was redriven."""

_WHY: Final = "mk_dlq_"
_HOW: Final = "mk_redrive_"


def is_for(message: Message, group: str) -> bool:
    """Whether a group is to handle a message: all are, but of one that was redriven only the group that gave it up."""
    return message.headers.get(REDRIVE_GROUP, group) == group


def settlement_of(message: Message) -> tuple[str, str]:
    """The service in whose outbox a message waits until it is settled, and the name under which it waits."""
    row = message.headers.get(REDRIVE_OUTBOX)
    if row is None:
        return message.headers.get("ce_source", ""), message.id
    service, _, name = row.partition("/")
    return service, name


@dataclass(frozen=True, slots=True)
class Letter:
    """A message that a group gave up. ``message`` is as it lies in its dead-letter topic; ``place`` belongs to whoever
    keeps it."""

    id: str
    message: Message
    place: Any = None

    @property
    def topic(self) -> str:
        """Where the message was published."""
        return self.message.headers.get(f"{_WHY}topic") or self.message.topic.removesuffix(SUFFIX)

    @property
    def group(self) -> str:
        """Who gave it up; ``""`` where the letter does not say."""
        return self.message.headers.get(f"{_WHY}group", "")

    @property
    def reason(self) -> str:
        return self.message.headers.get(f"{_WHY}reason", "")

    @property
    def error(self) -> str:
        return self.message.headers.get(f"{_WHY}error", "")

    @property
    def attempts(self) -> int:
        """How often the group tried, the last time."""
        return _number(self.message.headers.get(f"{_WHY}attempts"))

    @property
    def replays(self) -> int:
        """How often the message has been redriven."""
        return _number(self.message.headers.get(REPLAYS))

    @property
    def time(self) -> datetime | None:
        """When it was given up."""
        try:
            return datetime.fromisoformat(self.message.headers.get(f"{_WHY}time", "")).astimezone(UTC)
        except ValueError:
            return None

    @property
    def origin(self) -> str:
        """The partition and offset that the message had in its topic."""
        headers = self.message.headers
        return f"{headers.get(f'{_WHY}partition', '?')}/{headers.get(f'{_WHY}offset', '?')}"

    def redriven(self, group: str, extra: Mapping[str, str] | None = None) -> Message:
        """The message as it was published, to be handled by ``group`` alone: bytes, key, id and trace are the same.

        Not so its deadline: it has passed, and whoever redrives the message wants it to be handled all the same.
        """
        gone = (_WHY, _HOW, REPLAYS, DEADLINE)
        kept = {name: value for name, value in self.message.headers.items() if not name.startswith(gone)}
        kept |= {REDRIVE_GROUP: group, REPLAYS: str(self.replays + 1), **(extra or {})}
        return Message(self.topic, self.message.key, self.message.value, kept)


@dataclass(frozen=True, slots=True)
class Which:
    """Which dead letters are meant: what is ``None`` does not choose. ``ids`` are letters' own or their events'."""

    topics: Collection[str] | None = None
    groups: Collection[str] | None = None
    key: str | None = None
    reason: str | None = None
    ids: Collection[str] | None = None

    def fits(self, letter: Letter) -> bool:
        return (
            (self.topics is None or letter.topic in self.topics)
            and (self.groups is None or letter.group in self.groups)
            and (self.key is None or letter.message.key == self.key)
            and (self.reason is None or letter.reason == self.reason)
            and (self.ids is None or letter.id in self.ids or letter.message.id in self.ids)
        )


def _number(text: str | None) -> int:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 10 else 0
