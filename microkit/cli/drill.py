"""``microkit drill``: a running ``up --real`` restarted under load."""

from __future__ import annotations

from pathlib import Path

import uvloop

from microkit.cli.folder import read_note
from microkit.cli.load import load_system
from microkit.cli.printing import print_json, print_table, say
from microkit.drill import Drill, Plan
from microkit.errors import ConfigurationError


def drill(reference: str | None, *, folder: Path, plan: Plan, json: bool) -> bool:
    """Drills the system that runs in ``folder``; returns whether nothing was lost or noticed.

    Raises:
        ConfigurationError: no system of processes runs there, or it has no load.
    """
    note = read_note(folder)
    _, system = load_system(reference or note.system)
    if system.drill is None:
        raise ConfigurationError(f"The system {system.name} has no load: give System(…, drill=…) one")
    telling = (lambda _: None) if json else say
    report = uvloop.run(Drill(note.console, system.drill(), plan, tell=telling).run())
    document = report.document()
    if json:
        print_json(document)
    else:
        rows = [[name.replace("_", " "), value] for name, value in document.items() if name != "ok"]
        print_table("What came of it", ["", ""], rows)
        say("The promise held." if report.ok else "The promise did not hold.")
    return report.ok
