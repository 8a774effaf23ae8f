"""What ``microkit up`` says once the system is there."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from microkit.redaction import redact_text


@dataclass(frozen=True, slots=True)
class Announcement:
    """``services`` have a ``name``, ``url`` and ``state`` each; ``databases`` is the server's URL where there is one,
    ``credentials`` the demo passwords by name, ``None`` where no demo data was asked for."""

    system: str
    folder: Path
    console: str
    bus: str
    seconds: float
    services: Sequence[Mapping[str, str]]
    databases: str | None = None
    credentials: Mapping[str, str] | None = None

    def write_json(self) -> None:
        """The one document on stdout."""
        document: dict[str, Any] = {
            "system": self.system,
            "folder": str(self.folder),
            "console": self.console,
            "bus": self.bus,
            "ready_seconds": round(self.seconds, 3),
            "services": [dict(service) for service in self.services],
        }
        if self.credentials is not None:
            document["credentials"] = dict(self.credentials)
        sys.stdout.write(json.dumps(document) + "\n")
        sys.stdout.flush()

    def print_tables(self, out: Console) -> None:
        """For people."""
        table = Table(title=f"{self.system}: ready in {self.seconds:.1f} s", title_justify="left")
        for heading in ("service", "URL", "state"):
            table.add_column(heading)
        for service in self.services:
            table.add_row(service["name"], service["url"], f"[green]{service['state']}[/]")
        table.add_row("[dim]console[/]", f"[dim]{self.console}[/]", "")
        table.add_row("[dim]bus[/]", f"[dim]{escape(self.bus)}[/]", "")
        out.print(table)
        if self.credentials:
            given = Table(title="Demo credentials, for this machine only", title_justify="left")
            given.add_column("name")
            given.add_column("password")
            for name, password in self.credentials.items():
                given.add_row(name, password)
            out.print(given)
        where = f"Databases in [bold]{self.folder}[/]"
        if self.databases is not None:
            where = f"Databases on [bold]{escape(redact_text(self.databases))}[/], keys in [bold]{self.folder}[/]"
        out.print(f"{where}. In another terminal: [bold]microkit demo[/]. ^C ends.")
