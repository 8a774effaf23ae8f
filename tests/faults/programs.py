"""Programs beside the tests of faults, which run them: ``python -m tests.faults.saga.bank …``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[2]


def run(program: str, *arguments: str | Path, seconds: float | None = None) -> subprocess.CompletedProcess[str]:
    """``program`` is a module of :mod:`tests.faults`, such as ``saga.bank``."""
    command = [sys.executable, "-m", f"tests.faults.{program}", *arguments]
    return subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False, timeout=seconds)
