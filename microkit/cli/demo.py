"""``microkit demo``: the system's story, told against a running ``up``."""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import uvloop
from rich.console import Console

from microkit.cli.folder import Note, read_note
from microkit.cli.load import load_system
from microkit.console.narrator import TerminalNarrator
from microkit.console.story import Silent, Story, StoryBroken
from microkit.errors import ConfigurationError


def tell(reference: str | None, *, folder: Path, json: bool) -> bool:
    """Tells the story of the system that runs in ``folder``; returns whether all was as it should be.

    Raises:
        ConfigurationError: no system runs there, or it has no story.
    """
    note = read_note(folder)
    _, system = load_system(reference or note.system)
    if system.story is None:
        raise ConfigurationError(f"The system {system.name} has no story: give System(…, story=…) one")
    return uvloop.run(_tell(system.story, note, json=json))


async def _tell(tale: Callable[[Story], Awaitable[None]], note: Note, *, json: bool) -> bool:
    out = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 140)
    async with Story(note.services, note.console, Silent() if json else TerminalNarrator(out)) as story:
        try:
            await tale(story)
        except StoryBroken as broken:
            story.check("The story goes on to its end", False, broken)
    if json:
        sys.stdout.write(json_module.dumps(story.document(), default=str) + "\n")
    else:
        out.print()
        out.print(
            "[bold green]All as it should be.[/]" if story.ok else "[bold red]Not everything is as it should be.[/]"
        )
    return story.ok
