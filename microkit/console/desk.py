"""The desk of who operates a system: its dead letters, what its bus holds, how its outboxes are.

What it answers are plain documents, so that a command prints the same whether it asked here or over HTTP.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import orjson
from pydantic import AwareDatetime

from microkit.bus.letter import Letter, Which
from microkit.bus.port import Bus, Inspects, Settles, ShowsLag, Stored
from microkit.bus.redrive import MAX_REPLAYS, BusLetters, LetterBox, Redriving, groups_of, redrive
from microkit.db import Database
from microkit.errors import ConfigurationError
from microkit.message import Message
from microkit.outbox import admin
from microkit.outbox.dead_letters import OutboxLetters

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Post:
    """Where the events of one service are. ``groups`` are its consumer groups with their topics. A service whose name
    is ``""`` is not known: then the bus alone is asked."""

    service: str
    bus: Bus | None = None
    database: Database | None = None
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which dead letters are meant. What is ``None`` does not choose; ``ids`` are letters' own or their events'."""

    service: str | None = None
    topic: str | None = None
    group: str | None = None
    key: str | None = None
    reason: str | None = None
    ids: Sequence[str] | None = None


@dataclass(frozen=True, slots=True)
class Pace:
    """How letters are redriven: see :class:`microkit.bus.redrive.Redriving`."""

    max_replays: int = MAX_REPLAYS
    rate: float | None = None
    dry_run: bool = False
    to: str | None = None


@dataclass(frozen=True, slots=True)
class Rows:
    """Which rows of outboxes are meant. ``since`` is for a replay."""

    service: str | None = None
    topic: str | None = None
    key: str | None = None
    since: AwareDatetime | None = None
    dry_run: bool = False


class Desk(Protocol):
    """What the commands ask. All of it raises ``ConfigurationError`` for what is not there and ``ConnectionError``
    while the broker is away."""

    def letters(self, wanted: Wanted, *, whole: bool = False) -> AsyncGenerator[Document, None]:
        """Dead letters, those of one key by their age; ``whole`` ones with headers and value."""
        ...

    def redrive(self, wanted: Wanted, pace: Pace) -> AsyncGenerator[Document, None]:
        """What came of each letter: the letter, and ``refused`` with the reason or ``None``."""
        ...

    async def topics(self) -> list[Document]:
        """What the bus holds."""
        ...

    async def lag(self, service: str | None, group: str | None) -> list[Document]:
        """How far the groups are behind, partition by partition."""
        ...

    def tail(self, topic: str, *, last: int, follow: bool) -> AsyncGenerator[Document, None]:
        """The last messages of a topic, and with ``follow`` what comes."""
        ...

    async def outbox(self, service: str | None) -> list[Document]:
        """How each outbox is."""
        ...

    async def replay(self, rows: Rows) -> list[Document]:
        """How many published rows of each outbox are published again."""
        ...

    async def unpark(self, rows: Rows) -> list[Document]:
        """How many parked rows of each outbox are tried again."""
        ...


class LocalDesk:
    """A :class:`Desk` over buses and databases of this process."""

    def __init__(self, posts: Sequence[Post]) -> None:
        self._posts = posts
        self._owners = {group: post.service for post in posts for group in post.groups}

    # Dead letters.

    async def letters(self, wanted: Wanted, *, whole: bool = False) -> AsyncGenerator[Document, None]:
        which = self._which(wanted)
        for box in self._boxes(wanted.service):
            async with aclosing(box.letters(which.topics)) as found:
                async for letter in found:
                    if which.fits(letter):
                        yield self._letter(letter, whole=whole)

    async def redrive(self, wanted: Wanted, pace: Pace) -> AsyncGenerator[Document, None]:
        which = self._which(wanted)
        how = Redriving(**asdict(pace), known=await self._known_groups(which))
        for box in self._boxes(wanted.service):
            async with aclosing(redrive(box, which, how)) as outcomes:
                async for outcome in outcomes:
                    yield {**self._letter(outcome.letter), "refused": outcome.refused}

    def _which(self, wanted: Wanted) -> Which:
        groups: set[str] | None = None
        topics: set[str] | None = None
        if self._owners:  # else nobody says what there should be, and all that is there is meant
            topics = {topic for post in self._of(wanted.service) for each in post.groups.values() for topic in each}
        if wanted.service is not None and self._owners:
            groups = {group for post in self._of(wanted.service) for group in post.groups}
        if wanted.group is not None:
            groups = {wanted.group} if groups is None else groups & {wanted.group}
        if wanted.topic is not None:
            topics = {wanted.topic} if topics is None else topics & {wanted.topic}
        return Which(topics, groups, wanted.key, wanted.reason, wanted.ids)

    def _boxes(self, service: str | None) -> list[LetterBox]:
        """The dead-letter topics of brokers, and the outboxes, where the letters of a bus that keeps nothing are."""
        posts = self._of(service)
        buses = {id(post.bus): post.bus for post in posts if post.bus is not None}
        boxes: list[LetterBox] = [BusLetters(bus) for bus in buses.values() if not isinstance(bus, Settles)]
        return boxes + [OutboxLetters(post.database, post.service) for post in posts if post.database is not None]

    async def _known_groups(self, which: Which) -> set[str] | None:
        if self._owners:
            return set(self._owners)
        buses = [post.bus for post in self._posts if post.bus is not None]
        return {group for bus in buses for group in await groups_of(bus, which.topics)} if buses else None

    def _letter(self, letter: Letter, *, whole: bool = False) -> Document:
        message = letter.message
        partition, _, offset = letter.origin.partition("/")
        told: Document = {
            "id": letter.id,
            "service": self._owners.get(letter.group),
            "topic": letter.topic,
            "key": _text(message.key),
            "group": letter.group,
            "event_id": _text(message.id),
            "event_type": _text(message.type),
            "reason": letter.reason,
            "error": _text(letter.error),
            "attempts": letter.attempts,
            "replays": letter.replays,
            "time": letter.time.isoformat() if letter.time else None,
            "partition": partition,
            "offset": offset,
            "size": len(message.value),
        }
        return told | _whole(message) if whole else told

    # The bus.

    async def topics(self) -> list[Document]:
        found = []
        for bus in self._buses():
            if not isinstance(bus, Inspects):
                raise ConfigurationError(f"{type(bus).__name__} does not tell what it holds")
            found += [asdict(topic) for topic in await bus.topics()]
        return sorted(found, key=lambda topic: str(topic["name"]))

    async def lag(self, service: str | None, group: str | None) -> list[Document]:
        found: list[Document] = []
        for post in self._of(service):
            if post.bus is None or not isinstance(post.bus, ShowsLag):
                continue
            groups = post.groups or (await _groups_and_topics(post.bus) if not post.service else {})
            for name in sorted(groups):
                if group is None or name == group:
                    lags = await post.bus.lag(name, groups[name])
                    found += [{"service": post.service or None, **asdict(lag)} for lag in lags]
        if group is not None and not found:
            raise ConfigurationError(f"There is no group {group}; `microkit bus lag` without --group shows them all")
        return found

    async def tail(self, topic: str, *, last: int, follow: bool) -> AsyncGenerator[Document, None]:
        buses = self._buses()
        for bus in buses:
            if not isinstance(bus, Inspects):
                raise ConfigurationError(f"{type(bus).__name__} does not tell what it holds")
            known = sorted(each.name for each in await bus.topics())
            if topic not in known:
                if bus is buses[-1]:
                    raise ConfigurationError(f"There is no topic {topic}; there are: {', '.join(known) or 'none'}")
                continue
            async with aclosing(bus.read(topic, last=last, follow=follow)) as found:
                async for stored in found:
                    yield _stored(stored)
            return

    def _buses(self) -> list[Bus]:
        return list({id(post.bus): post.bus for post in self._posts if post.bus is not None}.values())

    # Outboxes.

    async def outbox(self, service: str | None) -> list[Document]:
        found = []
        for post, database in self._databases(service):
            status = await admin.outbox_status(database)
            found.append({"service": post.service, **asdict(status), "oldest": status.oldest})
        return found

    async def replay(self, rows: Rows) -> list[Document]:
        if rows.since is None:
            raise ConfigurationError("Since when? An example: --since 15m")
        return [
            {
                "service": post.service,
                "rows": await admin.replay(
                    database, since=rows.since, topic=rows.topic, key=rows.key, dry_run=rows.dry_run
                ),
            }
            for post, database in self._databases(rows.service)
        ]

    async def unpark(self, rows: Rows) -> list[Document]:
        return [
            {
                "service": post.service,
                "rows": await admin.unpark(database, topic=rows.topic, dry_run=rows.dry_run),
            }
            for post, database in self._databases(rows.service)
        ]

    def _databases(self, service: str | None) -> list[tuple[Post, Database]]:
        return [(post, post.database) for post in self._of(service) if post.database is not None]

    def _of(self, service: str | None) -> list[Post]:
        found = [post for post in self._posts if service is None or post.service == service]
        if not found and service is not None:
            there = ", ".join(post.service for post in self._posts) or "none"
            raise ConfigurationError(f"No service {service!r} with events is here; there are: {there}")
        return found


async def _groups_and_topics(bus: Bus) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    if isinstance(bus, Inspects):
        for topic in await bus.topics():
            for group in topic.groups:
                found.setdefault(group, []).append(topic.name)
    return found


def _stored(stored: Stored) -> Document:
    message = stored.message
    return {
        "topic": message.topic,
        "partition": stored.partition,
        "offset": stored.offset,
        "time": stored.time.isoformat() if stored.time else message.headers.get("ce_time"),
        "key": _text(message.key),
        "event_id": _text(message.id),
        "event_type": _text(message.type),
        **_whole(message),
    }


def _whole(message: Message) -> Document:
    """Headers and value; a value that is no JSON as its text, one that is no text in Base64."""
    told: Document = {"headers": {_text(name): _text(value) for name, value in message.headers.items()}}
    try:
        return told | {"value": orjson.loads(message.value)}
    except orjson.JSONDecodeError:
        pass
    try:
        return told | {"value": None, "value_text": message.value.decode()}
    except UnicodeDecodeError:
        return told | {"value": None, "value_base64": base64.b64encode(message.value).decode()}


def _text(text: str) -> str:
    """Bytes that are not UTF-8 came as surrogates, which no JSON takes."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()
