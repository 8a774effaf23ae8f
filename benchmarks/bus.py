"""Events over the buses: published and confirmed, consumed and acknowledged, beside the bare client and FastStream.

    python -m benchmarks.bus [--json] [PART …]

Events are 250 bytes of JSON, validated into a pydantic model where they are consumed, in messages a second. microkit's
figures have everything on: the CloudEvents envelope, a span and two metrics a message, deadline, retries and order per
key; what is "consumed" is acknowledged after its handler. ``inbox_effects`` are rows in PostgreSQL, each once;
``behind_mb`` is what a consumer holds, in MiB, that falls a million messages behind. Each contender runs in a process
of its own, and what it did is counted on the broker afterwards.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from importlib import import_module
from typing import Protocol

PARTS = ("redis", "kafka", "inbox", "behind")


class Part(Protocol):
    """A module ``benchmarks.bus_<part>``: the broker, and what runs on it by name."""

    CONTENDERS: tuple[str, ...]

    @staticmethod
    def broker() -> AbstractContextManager[str]: ...

    @staticmethod
    def run(name: str, url: str) -> dict[str, float]: ...


def part_of(name: str) -> Part:
    found: Part = import_module(f"benchmarks.bus_{name}")  # type: ignore[assignment]
    return found


def figures(part: str) -> Iterator[tuple[str, float]]:
    """Each contender in turn, on one broker."""
    module = part_of(part)
    with module.broker() as url:
        for name in module.CONTENDERS:
            command = [sys.executable, "-m", "benchmarks.bus", "--contender", f"{part}:{name}", url]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise SystemExit(f"{name} broke off: {done.stderr[-2000:]}")
            found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
            yield from found.items()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="the figures as one JSON object")
    parser.add_argument("--contender", nargs=2, metavar=("PART:NAME", "URL"), help=argparse.SUPPRESS)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all if none")
    options = parser.parse_args()
    if options.contender:
        part, name = options.contender[0].split(":")
        print(json.dumps(part_of(part).run(name, options.contender[1])))
        return
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no part is called {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    found: dict[str, float] = {}
    for part in options.parts or PARTS:
        for name, figure in figures(part):
            found[name] = round(figure)
            if not options.json:
                unit = "" if name.startswith("behind") or name.endswith("_us") else " /s"
                print(f"{name:28} {figure:>10,.0f}{unit}", flush=True)
    if options.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
