"""Redrive: dead letters go back to the topic they came from, for the group that gave them up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final, Protocol

from microkit.bus.dead_letter import SUFFIX
from microkit.bus.letter import Letter, Which
from microkit.bus.port import Bus, Inspects, PublishFailed, Removes, Stored
from microkit.errors import ConfigurationError, MicrokitError
from microkit.message import Message

MAX_REPLAYS: Final = 3
BATCH: Final = 100
"""Letters between two removals: so many may be handled twice after a crash."""


class LetterBox(Protocol):
    """Where dead letters are kept."""

    def letters(self, topics: Collection[str] | None) -> AsyncGenerator[Letter, None]:
        """The letters that are there now, of messages of these topics or of all; those of one key by their age.

        Raises:
            ConnectionError: the broker is away.
        """
        ...

    async def send_back(self, letters: Sequence[tuple[Letter, str]]) -> None:
        """Gives letters back to the groups named with them, in their order, and forgets them.

        A crash in between may leave some that went back already; it loses none.

        Raises:
            RedriveFailed: some did not go; they are still here.
            ConnectionError: the broker is away; some may have gone and still be here.
        """
        ...


class RedriveFailed(MicrokitError):
    """The broker did not take some of the letters. They are where they were."""


@dataclass(frozen=True, slots=True)
class Redriving:
    """How letters are redriven.

    A message that came back ``max_replays`` times already is refused: something is wrong that no replay mends.
    ``rate`` is the most letters a second. With ``dry_run`` nothing is moved. ``to`` is the group that takes the place
    of those that gave the messages up, for one that has another name by now. ``known`` are the groups there are: what
    is for any other is refused, because nobody would ever handle it; ``None`` lets all pass.
    """

    max_replays: int = MAX_REPLAYS
    rate: float | None = None
    dry_run: bool = False
    to: str | None = None
    known: Collection[str] | None = None

    def __post_init__(self) -> None:
        if self.max_replays < 1:
            raise ConfigurationError("max-replays is at least 1; an example: --max-replays 3")
        if self.rate is not None and not 0 < self.rate <= 1_000_000:
            raise ConfigurationError("rate is letters a second, more than 0; an example: --rate 50")

    def refusal(self, letter: Letter) -> str | None:
        """Why a letter is not redriven, ``None`` where it is."""
        if letter.replays >= self.max_replays:
            return f"redriven {letter.replays} times already; --max-replays {letter.replays + 1} allows another"
        group = self.to or letter.group
        if not group:
            return "it does not say which group gave it up; name one with --to"
        if self.known is not None and group not in self.known:
            return f"nobody has the group {group}; name another with --to"
        return None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one letter: ``refused`` says why it stays, ``None`` that it went (or would)."""

    letter: Letter
    refused: str | None = None


async def redrive(box: LetterBox, which: Which, how: Redriving) -> AsyncGenerator[Outcome, None]:
    """Redrives the letters that are there when it begins: one that dies again meanwhile is for the next time.

    Letters of one key go in their old order, behind whatever is in the topic: later messages of the key have been
    handled long since.

    Raises:
        RedriveFailed: the broker refused some; what was told before has gone.
        ConnectionError: the broker is away; the last batch may have gone and still be here.
    """
    sending = _Sending(box, how)
    async with aclosing(box.letters(which.topics)) as letters:
        async for letter in letters:
            if not which.fits(letter):
                continue
            if refused := how.refusal(letter):
                yield Outcome(letter, refused)
                continue
            for sent in await sending.add(letter):
                yield Outcome(sent)
    for sent in await sending.flush():
        yield Outcome(sent)


class _Sending:
    """Letters in batches, no faster than they may go."""

    def __init__(self, box: LetterBox, how: Redriving) -> None:
        self._box = box
        self._how = how
        self._size = BATCH if how.rate is None else max(1, min(BATCH, int(how.rate)))
        self._batch: list[Letter] = []
        self._next_at = time.monotonic()

    async def add(self, letter: Letter) -> list[Letter]:
        """Those that went, with this one or before it."""
        self._batch.append(letter)
        return await self.flush() if len(self._batch) >= self._size else []

    async def flush(self) -> list[Letter]:
        batch, self._batch = self._batch, []
        how = self._how
        if how.dry_run or not batch:
            return batch
        if how.rate is not None:
            await asyncio.sleep(max(0.0, self._next_at - time.monotonic()))
            self._next_at = time.monotonic() + len(batch) / how.rate
        await self._box.send_back([(letter, how.to or letter.group) for letter in batch])
        return batch


class BusLetters:
    """The dead-letter topics of a bus. A :class:`LetterBox`.

    Raises:
        ConfigurationError: the bus cannot be looked into.
    """

    def __init__(self, bus: Bus) -> None:
        if not isinstance(bus, Inspects) or not isinstance(bus, Removes):
            raise ConfigurationError(f"{type(bus).__name__} keeps no dead letters that could be looked at")
        self._bus = bus
        self._inspected: Inspects = bus
        self._removes: Removes = bus

    async def letters(self, topics: Collection[str] | None) -> AsyncGenerator[Letter, None]:
        there = [topic.name for topic in await self._inspected.topics() if topic.name.endswith(SUFFIX)]
        for name in there:
            origin = name.removesuffix(SUFFIX)
            if topics is not None and origin not in topics:
                continue
            async with aclosing(self._inspected.read(name)) as found:
                async for stored in found:
                    yield Letter(f"{origin}/{stored.partition}/{stored.offset}", stored.message, stored)

    async def send_back(self, letters: Sequence[tuple[Letter, str]]) -> None:
        messages: list[Message] = [letter.redriven(group) for letter, group in letters]
        places: list[Stored] = [letter.place for letter, _ in letters]
        try:
            await self._bus.publish(messages)
        except PublishFailed as error:
            await self._removes.remove([place for index, place in enumerate(places) if index not in error.failed])
            first = next(iter(error.failed.values()))
            raise RedriveFailed(
                f"{len(error.failed)} letters did not go and are still here; the first: {first}"
            ) from error
        await self._removes.remove(places)


async def groups_of(bus: Bus, topics: Collection[str] | None) -> set[str]:
    """The groups that read the topics, as the broker knows them."""
    if not isinstance(bus, Inspects):
        return set()
    return {group for topic in await bus.topics() if topics is None or topic.name in topics for group in topic.groups}
