"""The ``microkit`` command."""

from __future__ import annotations

import json
import sys


def main() -> None:
    """Runs the command.

    What goes wrong on purpose is one sentence on stderr and exit code 1, never a stack trace; with ``--json`` it is a
    document on stdout as well, so that a script always finds one there.
    """
    from microkit.cli.app import app  # noqa: PLC0415  so that `import microkit.cli` costs nothing
    from microkit.errors import MicrokitError  # noqa: PLC0415

    try:
        app(prog_name="microkit")
    except MicrokitError as error:
        if "--json" in sys.argv:
            sys.stdout.write(json.dumps({"ok": False, "error": str(error)}) + "\n")
        sys.stderr.write(f"microkit: {error}\n")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
