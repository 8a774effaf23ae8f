"""How long starting takes: importing, ``microkit --help``, and ``microkit up`` until all services are ready.

Each is measured from outside, as a new process sees it. ``up`` starts in an empty folder, so with new databases to
migrate, and again in the folder that the first left. The floor is Python itself. Beside the wall time of ``up`` stands
its CPU time, which other work on the machine does not lengthen.

    python -m benchmarks.startup [--json] [--rounds N] [--system MODULE:SYSTEM]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.targets import TARGETS

TARGET = TARGETS["startup"]
PORT_OFFSET = 20_000


def process_ms(rounds: int, *arguments: str) -> float:
    """The median of the wall time of a whole process, in milliseconds."""
    took = []
    for _ in range(rounds):
        began = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
        took.append((time.perf_counter() - began) * 1000)
    return statistics.median(took)


class Ready(NamedTuple):
    """``up`` at the moment it says that it is ready."""

    wall_s: float
    cpu_s: float
    services: int
    resident_mb: float


def ready(system: str | None, folder: Path) -> Ready:
    """Starts ``up``, waits for its document, ends it and checks that it ended well."""
    command = [sys.executable, "-m", "microkit.cli", "up", *([system] if system else []), "--json"]
    command += ["--folder", str(folder), "--port-offset", str(PORT_OFFSET)]
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        took = time.perf_counter() - began
        if not line:
            assert process.stderr is not None
            raise SystemExit(f"up did not start: {process.stderr.read()}")
        services = json.loads(line)["services"]
        cpu, resident = cpu_s(process.pid), resident_mb(process.pid)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    if process.returncode != 0 or not all(service["state"] == "ready" for service in services):
        raise SystemExit(f"up was not ready or did not end cleanly: {services}, exit code {process.returncode}")
    return Ready(took, cpu, len(services), resident)


def cpu_s(pid: int) -> float:
    """The CPU time that the process has used, in seconds; 0 where the system does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mb(pid: int) -> float:
    """What the process holds in memory now, in MB; 0 where the system does not tell."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def measure(rounds: int, system: str | None) -> dict[str, float]:
    floor = process_ms(rounds, "-c", "pass")
    with_import = process_ms(rounds, "-c", "import microkit")
    with_service = process_ms(rounds, "-c", "from microkit import Service")
    help_ms = process_ms(rounds, "-m", "microkit.cli", "--help")
    with tempfile.TemporaryDirectory() as folder:
        first = ready(system, Path(folder))
        again = [ready(system, Path(folder)) for _ in range(max(1, rounds // 3))]
    return {
        "python_ms": round(floor, 1),
        "import_ms": round(with_import - floor, 1),
        "import_service_ms": round(with_service - floor, 1),
        "help_ms": round(help_ms, 1),
        "up_first_s": round(first.wall_s, 2),
        "up_first_cpu_s": round(first.cpu_s, 2),
        "up_s": round(statistics.median(run.wall_s for run in again), 2),
        "up_cpu_s": round(statistics.median(run.cpu_s for run in again), 2),
        "services": first.services,
        "resident_mb": round(first.resident_mb),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--system", default=None)
    options = parser.parse_args()
    found = measure(options.rounds, options.system)
    if options.json:
        print(json.dumps(found))
        return
    rows = [
        ("Python itself", f"{found['python_ms']:.0f} ms", ""),
        ("import microkit", f"{found['import_ms']:.0f} ms", f"{TARGET['import_ms']} ms"),
        ("from microkit import Service", f"{found['import_service_ms']:.0f} ms", ""),
        ("microkit --help", f"{found['help_ms']:.0f} ms", ""),
        (
            f"up, {found['services']:.0f} services, new databases",
            f"{found['up_first_s']:.2f} s",
            f"{TARGET['up_first_s']} s",
        ),
        ("    of it CPU time", f"{found['up_first_cpu_s']:.2f} s", ""),
        ("up again", f"{found['up_s']:.2f} s", f"{TARGET['up_s']} s"),
        ("    of it CPU time", f"{found['up_cpu_s']:.2f} s", ""),
        ("resident when ready", f"{found['resident_mb']:.0f} MB", f"{TARGET['resident_mb']} MB"),
    ]
    for what, value, target in rows:
        print(f"{what:<40}{value:>10}   {target}")


if __name__ == "__main__":
    main()
