"""``microkit bus``: what the bus holds, how far its groups are behind, what passes."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from microkit.bus.letter import REDRIVE_GROUP
from microkit.cli.printing import clock, print_json, print_table, say, short, value_of
from microkit.cli.where import Where
from microkit.console.desk import Document


def topics(where: Where, *, json: bool) -> None:
    """Prints the topics of the bus."""
    found = asyncio.run(_topics(where))
    if json:
        print_json({"topics": found})
        return
    if not found:
        say("No topics.")
        return
    print_table(
        "Topics",
        ("topic", "partitions", "messages kept", "groups"),
        [(topic["name"], topic["partitions"], topic["messages"], "\n".join(topic["groups"])) for topic in found],
    )


def lag(where: Where, group: str | None, *, json: bool) -> None:
    """Prints how far each group is behind."""
    found = asyncio.run(_lag(where, group))
    if json:
        print_json({"lag": found})
        return
    if not found:
        say("No groups.")
        return
    rows: dict[tuple[str, str], list[int]] = {}
    for each in found:
        rows.setdefault((each["group"], each["topic"]), []).append(each["waiting"])
    print_table(
        "Messages not yet acknowledged",
        ("group", "topic", "waiting", "in partitions"),
        [
            (*name, sum(counts), f"{sum(1 for count in counts if count)} of {len(counts)}")
            for name, counts in rows.items()
        ],
    )


def tail(where: Where, topic: str, *, last: int, follow: bool, json: bool) -> None:
    """Prints the last messages of a topic, and with ``follow`` what comes, until it is interrupted."""
    asyncio.run(_tail(where, topic, last=last, follow=follow, json=json))


async def _topics(where: Where) -> list[Document]:
    async with where.desk("bus") as desk:
        return await desk.topics()


async def _lag(where: Where, group: str | None) -> list[Document]:
    async with where.desk("bus") as desk:
        return await desk.lag(where.service, group)


async def _tail(where: Where, topic: str, *, last: int, follow: bool, json: bool) -> None:
    none = True
    async with where.desk("bus") as desk, aclosing(desk.tail(topic, last=last, follow=follow)) as messages:
        async for message in messages:
            none = False
            if json:
                print_json(message)
            else:
                _print_message(message)
    if none and not json:
        say(f"Nothing in {topic}. --follow waits for what comes.")


def _print_message(message: Document) -> None:
    name = str(message["event_type"]).rpartition(".")[2] or "?"
    group = message["headers"].get(REDRIVE_GROUP)
    redriven = f"  (redriven for {group})" if group else ""
    place = f"{message['partition']}/{message['offset']}"
    say(f"{clock(message['time'])}  {place}  {name}  {message['key']}  {short(value_of(message), 400)}{redriven}")
