"""``microkit up`` in a process of its own, from the moment at which it says that everything runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def announced(
    folder: Path, *arguments: str, env: Mapping[str, str], cwd: Path | None = None
) -> Iterator[tuple[subprocess.Popen[str], Any]]:
    """The process and the document that it announced itself with. What it logs goes to ``log`` in the folder. With the
    block it is killed, if it has not ended by then."""
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "microkit.cli", "up", *arguments, "--json", "--console-port", "0"],
            cwd=cwd,
            env={**os.environ, **env},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    assert process.stdout is not None
    try:
        said = process.stdout.readline()
        assert said, (folder / "log").read_text()[-4000:]
        yield process, json.loads(said)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
