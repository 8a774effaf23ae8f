"""Options that several commands have, so that each is called the same and says the same everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import typer

from microkit.errors import ConfigurationError

ServiceOption = Annotated[
    str | None, typer.Option("--service", metavar="NAME", help="One service only, found by its own settings.")
]
SystemOption = Annotated[
    str | None,
    typer.Option("--system", metavar="MODULE:SYSTEM", help="The system, if not the one of pyproject.toml."),
]
BusOption = Annotated[
    str | None, typer.Option("--bus", metavar="URL", help="Look at this broker: redis://… or kafka://….")
]
DatabaseOption = Annotated[
    str | None, typer.Option("--database", metavar="URL", help="Look into this database instead of a service's.")
]
FolderOption = Annotated[Path, typer.Option("--folder", help="Where `microkit up` keeps its files.")]
UrlOption = Annotated[
    list[str] | None,
    typer.Option("--url", metavar="URL", help="Where an instance's admin endpoints are. May be given repeatedly."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout and nothing else.")]


MOST_COPIES: Final = 100


def scaled(options: Sequence[str]) -> dict[str, int]:
    """``billing=2`` as service and number.

    Raises:
        ConfigurationError: it is written otherwise.
    """
    found: dict[str, int] = {}
    for option in options:
        service, _, number = option.partition("=")
        if not service or not number.isascii() or not number.isdigit():
            raise ConfigurationError(f"--scale {option[:80]!r} is no service and number; an example: --scale billing=2")
        if len(number) > 3 or int(number) > MOST_COPIES:
            raise ConfigurationError(
                f"--scale {option[:80]!r} is more than the {MOST_COPIES} instances that one machine is good for"
            )
        found[service] = int(number)
    return found
