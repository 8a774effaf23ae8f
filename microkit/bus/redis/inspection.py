"""Looking into the streams: what there is, who reads it, and what lies in it. It joins no group and moves nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from itertools import groupby
from typing import Any, Final

from microkit.bus.port import Stored, Topic
from microkit.bus.redis.scripts import DESCRIBE
from microkit.bus.redis.server import Server
from microkit.bus.redis.wire import message_of, number_of

_AT_ONCE: Final = 500
_BLOCK: Final = 1.0
"""Seconds that the server holds a waiting command; it is below the time in which an answer must come."""


async def topics_of(server: Server) -> list[Topic]:
    found = []
    for name, streams in (await server.topics()).items():
        messages, groups = await server.run(DESCRIBE, streams, [])
        found.append(Topic(name, len(streams), messages, tuple(sorted(group.decode() for group in groups))))
    return found


async def read(server: Server, topic: str, last: int | None, follow: bool) -> AsyncIterator[Stored]:
    """See :meth:`microkit.bus.port.Inspects.read`. The streams know no times: the newest of several partitions are
    told by the time in the envelope."""
    streams = (await server.topics()).get(topic, [])
    ends = [await _end(server, stream) for stream in streams]
    newest: list[Stored] = []
    for partition, (stream, end) in enumerate(zip(streams, ends, strict=True)):
        if last is not None:
            entries = await server.command("XREVRANGE", stream, f"0-{end}", "-", "COUNT", last) if last else []
            newest += [_stored(topic, partition, entry) for entry in reversed(entries)]
            continue
        after = 0
        while after < end:
            entries = await server.command("XRANGE", stream, f"(0-{after}", f"0-{end}", "COUNT", _AT_ONCE)
            for entry in entries:
                yield _stored(topic, partition, entry)
            after = number_of(entries[-1][0]) if len(entries) == _AT_ONCE else end
    if newest:
        for stored in sorted(newest, key=_when)[-(last or 0) :]:
            yield stored
    if follow and streams:
        async for stored in _follow(server, topic, dict(zip(streams, ends, strict=True))):
            yield stored


async def remove(server: Server, stored: Sequence[Stored]) -> None:
    """See :meth:`microkit.bus.port.Removes.remove`."""
    topics = await server.topics()
    by_stream = sorted(
        (topics[each.message.topic][each.partition], each.offset) for each in stored if each.message.topic in topics
    )
    for stream, places in groupby(by_stream, key=lambda place: place[0]):
        numbers = [f"0-{offset}" for _, offset in places]
        for start in range(0, len(numbers), _AT_ONCE):
            await server.command("XDEL", stream, *numbers[start : start + _AT_ONCE])


async def _follow(server: Server, topic: str, ends: dict[str, int]) -> AsyncIterator[Stored]:
    names = {stream.encode(): (partition, stream) for partition, stream in enumerate(ends)}
    while True:
        reply = await server.command(
            "XREAD", "COUNT", _AT_ONCE, "BLOCK", int(_BLOCK * 1000), "STREAMS",
            *ends, *[f"0-{end}" for end in ends.values()],
        )  # fmt: skip
        for name, entries in dict(reply or ()).items():
            partition, stream = names[name]
            ends[stream] = number_of(entries[-1][0])
            for entry in entries:
                yield _stored(topic, partition, entry)


async def _end(server: Server, stream: str) -> int:
    entries = await server.command("XREVRANGE", stream, "+", "-", "COUNT", 1)
    return number_of(entries[0][0]) if entries else 0


def _stored(topic: str, partition: int, entry: Sequence[Any]) -> Stored:
    return Stored(message_of(topic, entry[1]), partition, number_of(entry[0]))


def _when(stored: Stored) -> tuple[datetime, int, int]:
    headers = stored.message.headers
    try:
        time = datetime.fromisoformat(headers.get("mk_dlq_time") or headers.get("ce_time", ""))
    except ValueError:
        time = datetime.fromtimestamp(0, UTC)
    return (time if time.tzinfo else time.replace(tzinfo=UTC), stored.partition, stored.offset)
