"""``microkit doctor``: what would keep a service from starting, or from holding under load."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.status import Status

from microkit.cli.checks import Checks
from microkit.cli.findings import PATIENCE, Finding, together
from microkit.cli.folder import find_note
from microkit.cli.ground import addresses, ground, running
from microkit.cli.load import find_service, load_system
from microkit.cli.printing import print_json, print_table, say
from microkit.service import Service


def doctor(service: str | None, system: str | None, folder: Path, *, json: bool) -> bool:
    """Prints what it finds of one service, or of the whole system and its folder; returns whether there is no error.

    Raises:
        ConfigurationError: there is no such system or service.
    """
    _, found = load_system(system)
    services = [find_service(found, service)] if service else list(found.services)
    with _silence(), _telling(len(services)):
        findings = asyncio.run(_look(services, None if service else folder))
    counts = {verdict: sum(each.verdict == verdict for each in findings) for verdict in ("ok", "warning", "error")}
    if json:
        print_json({"ok": not counts["error"], "counts": counts, "findings": [asdict(each) for each in findings]})
    else:
        rows = [(each.verdict, each.service, each.what, each.said) for each in findings]
        print_table(f"{found.name}", ("", "service", "what", "how it is, and what to do"), rows)
        say(f"{counts['ok']} ok, {counts['warning']} warnings, {counts['error']} errors")
    return not counts["error"]


async def _look(services: list[Service], folder: Path | None) -> list[Finding]:
    """All services at the same time: one that does not answer holds nobody up."""
    note = find_note(folder) if folder is not None else None
    ours = addresses(note)
    checks = [Checks(each, ours.get(each.name, frozenset())) for each in services]
    looked = await asyncio.gather(*(each.run() for each in checks), running(note))
    findings = [each for found in looked for each in found]
    beside = ground(folder) if folder is not None else []
    return beside + findings + together([demand for each in checks for demand in each.demands])


@contextmanager
def _silence() -> Iterator[None]:
    """What is wrong stands among the findings."""
    handler = logging.NullHandler()
    logging.root.addHandler(handler)
    try:
        yield
    finally:
        logging.root.removeHandler(handler)


@contextmanager
def _telling(services: int) -> Iterator[None]:
    """Says to a person that it is at work: a server that does not answer takes its time."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield
        return
    of = f"{services} services" if services > 1 else "the service"
    with Status(f"Looking at {of}, which may take {PATIENCE:g} s", console=Console(file=sys.stderr)):
        yield
