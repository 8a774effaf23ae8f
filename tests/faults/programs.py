"""Programs beside the tests of faults, which run them: ``python -m tests.faults.saga.bank …``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[2]


def run(program: str, *arguments: str | Path, seconds: float | None = None) -> subprocess.CompletedProcess[str]:
    """``program`` is a module of :mod:`tests.faults`, such as ``saga.bank``. What it has started ends with it, when the
    test's time is over, too."""
    command = [sys.executable, "-m", f"tests.faults.{program}", *arguments]
    with subprocess.Popen(
        command, cwd=_ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            out, err = process.communicate(timeout=seconds)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)
