"""Runs every benchmark of this folder and writes one table.

    python -m benchmarks [--json] [NAME …]

A benchmark is a module of this folder that can be run; with ``--json`` its last line is an object of figures by name.
The table goes to standard output and to ``benchmarks/results.md``; ``--json`` prints the figures alone. A missed target
is marked and is no failure, because the machine has its part in it; a benchmark that breaks off is one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from benchmarks.targets import TARGETS, Target

HERE = Path(__file__).parent
RESULTS = HERE / "results.md"
PARTS = {"transactions": ("http", "--postgres")}
"""Benchmarks that are an option of another module, by name."""

Figures = Mapping[str, float]


class Broken(NamedTuple):
    """A benchmark that did not come to its figures, and what it said last."""

    name: str
    said: str


def benchmarks() -> list[str]:
    """The modules that can be run, and the parts, by name."""
    files = (path for path in HERE.glob("*.py") if path.name != "__main__.py")
    found = {path.stem for path in files if '\nif __name__ == "__main__":\n' in path.read_text(encoding="utf-8")}
    return sorted(found | PARTS.keys())


def figures_of(name: str) -> Figures | Broken:
    """Runs one benchmark in a process of its own, so that none is measured in the heap of another."""
    module, *options = PARTS.get(name, (name,))
    command = [sys.executable, "-m", f"benchmarks.{module}", *options, "--json"]
    done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    if done.returncode != 0 or not lines:
        return Broken(name, (done.stderr.strip() or f"exit code {done.returncode}, nothing printed"))
    found: dict[str, float] = json.loads(lines[-1])
    return found


def verdict(target: Target | None, figure: float) -> str:
    if target is None:
        return ""
    return f"{target}" if target.met(figure) else f"**{target}: missed**"


def rows(name: str, figures: Figures) -> Iterable[str]:
    targets = TARGETS.get(name, {})
    for figure, value in figures.items():
        yield f"| {name} | {figure} | {value:,g} | {verdict(targets.get(figure), value)} |"


def table(found: Mapping[str, Figures], broken: Sequence[Broken]) -> str:
    lines = [
        "# Benchmarks",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}, "
        f"{platform.python_implementation()} {platform.python_version()}. `nox -s bench` writes this file.",
        "Units stand at the end of the names; a ratio is the peer's cost over microkit's, or microkit's rate over the "
        "peer's, in the same run.",
        "",
        "| benchmark | figure | value | target |",
        "|---|---|--:|---|",
        *(row for name, figures in found.items() for row in rows(name, figures)),
        *(f"| {name} | broke off | | |" for name, _ in broken),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="the figures as one JSON object")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(benchmarks())}; all if none")
    options = parser.parse_args()
    if unknown := set(options.names) - set(benchmarks()):
        parser.error(f"no benchmark is called {', '.join(sorted(unknown))}; there are {', '.join(benchmarks())}")
    found: dict[str, Figures] = {}
    broken: list[Broken] = []
    for name in options.names or benchmarks():
        print(f"{name} …", file=sys.stderr, flush=True)
        result = figures_of(name)
        if isinstance(result, Broken):
            broken.append(result)
            print(result.said, file=sys.stderr)
        else:
            found[name] = result
    print(json.dumps(found) if options.json else table(found, broken))
    if not options.names and not broken:
        RESULTS.write_text(table(found, broken), encoding="utf-8")
    if broken:
        raise SystemExit(f"broke off: {', '.join(name for name, _ in broken)}")


if __name__ == "__main__":
    main()
