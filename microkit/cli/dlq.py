"""``microkit dlq``: dead letters are listed, looked into, and redriven."""

from __future__ import annotations

import asyncio
from typing import Any

from microkit.cli.printing import clock, print_json, print_table, say, short, value_of
from microkit.cli.where import Where
from microkit.console.desk import Document, Pace, Wanted
from microkit.errors import ConfigurationError

_HEADINGS = ("letter", "given up by", "event", "key", "reason", "error", "attempts", "replays", "when (UTC)")


def ls(where: Where, wanted: Wanted, *, limit: int, json: bool) -> None:
    """Prints the first ``limit`` dead letters and how many there are."""
    letters, total = asyncio.run(_letters(where, wanted, limit))
    if json:
        print_json({"letters": letters, "total": total})
        return
    if not total:
        say("No dead letters.")
        return
    print_table(f"Dead letters: {total}", _HEADINGS, [_row(letter) for letter in letters])
    if total > len(letters):
        say(f"{total - len(letters)} more: --limit {total}, or choose with --topic, --group, --key, --reason.")
    say("More of one: microkit dlq show LETTER. Back to work: microkit dlq redrive --dry-run")


def show(where: Where, letter_id: str, *, json: bool) -> None:
    """Prints one dead letter with its headers and value; by its event's id, each group's.

    Raises:
        ConfigurationError: it is not there.
    """
    wanted = Wanted(service=where.service, ids=[letter_id])
    letters, _ = asyncio.run(_letters(where, wanted, 100, whole=True))
    if not letters:
        raise ConfigurationError(
            f"There is no dead letter {letter_id}; `microkit dlq ls` lists those there are (one that was redriven is "
            "not listed again)"
        )
    if json:
        print_json({"letters": letters})
        return
    for letter in letters:
        _print_whole(letter)


def redrive(where: Where, wanted: Wanted, pace: Pace, *, json: bool) -> bool:
    """Redrives, and prints what came of each letter; returns whether none was refused.

    Raises:
        ConfigurationError: ``wanted`` names letters that are not there.
    """
    if where.database is not None and where.service is None and not pace.dry_run:
        raise ConfigurationError("Whose outbox is that? Name the service beside --database: --service billing")
    outcomes = asyncio.run(_redrive(where, wanted, pace))
    if wanted.ids and not outcomes:
        raise ConfigurationError(f"There is no dead letter {', '.join(wanted.ids)}; `microkit dlq ls` lists them")
    refused = sum(1 for outcome in outcomes if outcome["refused"] is not None)
    if json:
        document = {"dry_run": pace.dry_run, "redriven": len(outcomes) - refused, "refused": refused}
        print_json({**document, "letters": outcomes})
    elif not outcomes:
        say("No dead letters to redrive.")
    else:
        _print_outcomes(outcomes, pace)
        say(f"{len(outcomes) - refused} {'would go' if pace.dry_run else 'went'}, {refused} stay.")
    return not refused


def _print_outcomes(outcomes: list[Document], pace: Pace) -> None:
    went = "would go" if pace.dry_run else "went"
    print_table(
        "Redrive, on trial" if pace.dry_run else "Redrive",
        ("letter", "to topic", "for the group", "event", "key", "replay", "outcome"),
        [
            (
                letter["id"],
                letter["topic"],
                pace.to or letter["group"],
                _event(letter),
                letter["key"],
                letter["replays"] + (letter["refused"] is None),
                went if letter["refused"] is None else f"stays: {letter['refused']}",
            )
            for letter in outcomes
        ],
    )


async def _letters(where: Where, wanted: Wanted, limit: int, *, whole: bool = False) -> tuple[list[Document], int]:
    kept: list[Document] = []
    total = 0
    async with where.desk("letters") as desk:
        async for letter in desk.letters(wanted, whole=whole):
            total += 1
            if len(kept) < limit:
                kept.append(letter)
    return kept, total


async def _redrive(where: Where, wanted: Wanted, pace: Pace) -> list[Document]:
    async with where.desk("letters") as desk:
        return [outcome async for outcome in desk.redrive(wanted, pace)]


def _row(letter: Document) -> tuple[Any, ...]:
    return (
        letter["id"],
        letter["group"],
        _event(letter),
        letter["key"],
        letter["reason"],
        short(letter["error"]),
        letter["attempts"],
        letter["replays"],
        clock(letter["time"]),
    )


def _event(letter: Document) -> str:
    return str(letter["event_type"]).rpartition(".")[2] or "?"


def _print_whole(letter: Document) -> None:
    names = ("event_type", "event_id", "topic", "partition", "offset", "key", "group", "service", "reason", "error",
             "attempts", "replays", "time", "size")  # fmt: skip
    print_table(f"Dead letter {letter['id']}", ("what", "value"), [(name, letter[name]) for name in names])
    print_table("Headers", ("name", "value"), sorted(letter["headers"].items()))
    say(f"Value: {value_of(letter)}")
