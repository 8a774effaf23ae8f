"""``microkit doctor``: what would keep a service from starting, or from holding under load."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import asdict

from microkit.cli.checks import Checks, Demand, Finding, together
from microkit.cli.load import find_service, load_system
from microkit.cli.printing import print_json, print_table, say


def doctor(service: str | None, system: str | None, *, json: bool) -> bool:
    """Prints what it finds; returns whether there is no error.

    Raises:
        ConfigurationError: there is no such system or service.
    """
    _, found = load_system(system)
    logging.root.addHandler(logging.NullHandler())  # what is wrong stands among the findings
    services = [find_service(found, service)] if service else list(found.services)
    findings = asyncio.run(_look([Checks(each) for each in services]))
    counts = {verdict: sum(each.verdict == verdict for each in findings) for verdict in ("ok", "warning", "error")}
    if json:
        print_json({"ok": not counts["error"], "counts": counts, "findings": [asdict(each) for each in findings]})
    else:
        rows = [(each.verdict, each.service, each.what, each.said) for each in findings]
        print_table(f"{found.name}", ("", "service", "what", "how it is, and what to do"), rows)
        say(f"{counts['ok']} ok, {counts['warning']} warnings, {counts['error']} errors")
    return not counts["error"]


async def _look(all_checks: list[Checks]) -> list[Finding]:
    findings: list[Finding] = []
    demands: list[Demand] = []
    for checks in all_checks:
        findings += [finding async for finding in checks.run()]
        demands += checks.demands
    return findings + together(demands)
