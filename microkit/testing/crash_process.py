"""The crash-point explorer with processes: each is killed by a real SIGKILL, and a new one started in its place.

The points are found as in :mod:`microkit.testing.crash`. Each costs the start of two processes. The broker is
``memory://``, which dies with the process: what it held is in the outboxes. What a scenario keeps in memory dies too; a
fake that is to outlive the system keeps it in a file.
"""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import json
import mmap
import os
import pickle
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

from microkit.bus.memory import MemoryBus
from microkit.errors import DefinitionError
from microkit.testing.clock import VirtualClock, new_loop, virtual_time
from microkit.testing.crash import DOWN, TRIES, WITHIN, Explored, Explorer, chosen_points, report
from microkit.testing.crash_points import Commits, Watch, WatchedSettlingBus
from microkit.testing.crash_world import CrashScenario, Played, World, settled, system_of
from microkit.testing.postgres import Cluster

T = TypeVar("T")

PATIENCE: Final = 300.0
"""Real seconds that a process may take."""

_TAIL: Final = 3000


def explore_killing(
    scenario: type[CrashScenario[T]],
    *,
    only: str | None = None,
    every: int = 1,
    postgres: Cluster | None = None,
    within: float = WITHIN,
) -> Explored:
    """As :func:`microkit.testing.crash.explore`, with real processes and a real SIGKILL.

    ``scenario`` is a class of a module, which each process loads anew; what ``arrange`` returned is pickled.

    Raises:
        AssertionError: as ``explore``.
        DefinitionError: the class is inside of a function.
    """
    if "<locals>" in scenario.__qualname__:
        raise DefinitionError(f"{scenario.__qualname__} is inside of a function: other processes cannot load it")
    with Explorer(scenario, "dies", postgres, within) as explorer:
        explorer.arrange()
        points = explorer.discover()
        chosen = chosen_points(points, only, every)
        killed: list[str] = []
        failures: list[tuple[str, Exception]] = []
        for point in chosen:
            try:
                if any(_killed(explorer, scenario, point, within) for _ in range(TRIES)):
                    killed.append(point)
            except AssertionError as error:
                killed.append(point)
                failures.append((point, error))
    if failures:
        raise AssertionError(report(failures, len(killed))) from failures[0][1]
    return Explored(points, killed, [point for point in chosen if point not in killed])


def _killed(explorer: Explorer[T], scenario: type[CrashScenario[T]], point: str, within: float) -> bool:
    """Kills a process at ``point`` and starts another; whether it passed there.

    Raises:
        AssertionError: one of them failed.
    """
    explorer.place.renew()
    process = _Process(explorer, scenario, within)
    if process.run(point) != -signal.SIGKILL:
        return False
    process.run(None)
    return True


class _Process:
    """The processes of one point."""

    def __init__(self, explorer: Explorer[Any], scenario: type[CrashScenario[Any]], within: float) -> None:
        self._folder = explorer.place.folder
        (self._folder / "arranged").write_bytes(pickle.dumps(explorer.arranged))
        (self._folder / "clock").write_bytes(struct.pack("d", explorer.clock.skipped))
        self._task = {
            "file": inspect.getsourcefile(scenario),
            "scenario": scenario.__qualname__,
            "folder": str(self._folder),
            "given": explorer.place.given,
            "within": within,
        }

    def run(self, point: str | None) -> int:
        """Runs a process, killed at ``point``, to its end; its exit code.

        Raises:
            AssertionError: it failed.
        """
        done = subprocess.run(  # noqa: S603  our own program
            [sys.executable, "-m", "microkit.testing.crash_process", json.dumps({**self._task, "point": point})],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        if done.returncode not in (0, -signal.SIGKILL):
            raise AssertionError(f"the process ended with {done.returncode}:\n{done.stderr[-_TAIL:]}")
        return done.returncode


@contextmanager
def _kept_clock(path: Path) -> Iterator[VirtualClock]:
    """The virtual clock goes on where it was when the process before was killed."""
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 8) as kept:
        clock = VirtualClock(
            struct.unpack("d", kept[:8])[0], watch=lambda skipped: struct.pack_into("d", kept, 0, skipped)
        )
        yield clock


def _loaded(file: str, name: str) -> type[CrashScenario[Any]]:
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    assert spec is not None  # noqa: S101  the file was loaded by our parent, too
    assert spec.loader is not None  # noqa: S101  as above
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part)
    return found  # type: ignore[no-any-return]  # our parent said so


def main(arguments: Sequence[str]) -> None:
    """One life of the system, as a process."""
    task = json.loads(arguments[0])
    folder, point = Path(task["folder"]), task["point"]
    acted = folder / "acted"
    scenario = _loaded(task["file"], task["scenario"])()
    system = system_of(scenario.system)
    world = World(system, settled(system, folder, task["given"], scenario.settings), folder)
    arranged = pickle.loads((folder / "arranged").read_bytes())  # noqa: S301  written by our parent
    commits = Commits()

    def reached(name: str) -> None:
        if name == point:
            os.kill(os.getpid(), signal.SIGKILL)

    watch = commits.watch = Watch(reached)
    bus = WatchedSettlingBus(MemoryBus(), watch)
    played = Played(scenario, arranged, world, within=task["within"])
    with (
        _kept_clock(folder / "clock") as clock,
        virtual_time(clock),
        commits.seen(),
        asyncio.Runner(loop_factory=new_loop(clock)) as runner,
    ):
        if point is None:
            clock.leap(DOWN)
        runner.run(played.live(watch, bus, None if acted.exists() else acted.touch))


if __name__ == "__main__":
    main(sys.argv[1:])
