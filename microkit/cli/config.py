"""``microkit config show``."""

from __future__ import annotations

import json as json_module
import sys
from dataclasses import asdict

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from microkit.cli.load import find_service, load_system
from microkit.settings import describe


def show(service: str, system: str | None, *, json: bool) -> None:
    """Prints the settings of a service, secrets masked.

    Raises:
        ConfigurationError: there is no such service, or a setting is wrong.
    """
    _, found = load_system(system)
    settings = describe(find_service(found, service).settings())
    if json:
        sys.stdout.write(json_module.dumps([asdict(setting) for setting in settings], default=str) + "\n")
        return
    table = Table(title=f"Settings of {service}", title_justify="left")
    for heading in ("key", "value", "from", "default", "meaning"):
        table.add_column(heading, overflow="fold")
    for setting in settings:
        table.add_row(
            *(escape(text) for text in (setting.key, setting.value, setting.source, setting.default, setting.help))
        )
    Console(file=sys.stdout).print(table)
