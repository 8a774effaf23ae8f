"""The crash-point explorer: kills a system at each point where something could be lost, and looks what becomes of it.

::

    class PayingOnce(CrashScenario[UUID]):
        system = shop

        async def arrange(self, world: SystemUnderTest) -> UUID: ...        # what is there before
        async def act(self, world: SystemUnderTest, order: UUID) -> None: ...    # what is asked of it
        async def invariant(self, world: SystemUnderTest, order: UUID) -> None: ...  # what must be true in the end

    def test_an_order_is_paid_once_wherever_the_shop_is_killed() -> None:
        explore(PayingOnce)

The scenario is played once to find every commit, publish, call and acknowledgement. Then it is played again for each of
them, before and after it: the process is stopped dead there (see :mod:`microkit.testing.crash_life`), started again on
the same databases and the same broker, and when it has come to rest the invariant is looked at. All in one process and
in virtual time, which takes a fraction of a second for each point.
:func:`microkit.testing.crash_process.explore_killing` does the same with processes and a real SIGKILL.
"""

from __future__ import annotations

import os
import shlex
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Final, Generic, Literal, Self, TypeVar

from microkit.bus.memory import MemoryBus
from microkit.errors import MicrokitError
from microkit.testing.clock import VirtualClock, virtual_time
from microkit.testing.crash_life import Life
from microkit.testing.crash_points import Commits, Watch, WatchedBus, WatchedSettlingBus
from microkit.testing.crash_world import CrashScenario, Place, Played, World, rest
from microkit.testing.folder import short_lived
from microkit.testing.postgres import Cluster

__all__ = ["CrashScenario", "Explored", "explore"]

T = TypeVar("T")

Broker = Literal["stays", "dies"]

ONLY: Final = "MICROKIT_CRASH_POINT"
"""The environment variable that names the one point to explore."""

WITHIN: Final = 3600.0
"""Virtual seconds in which a system that was killed must have come to rest."""

DOWN: Final = 30.0
"""Virtual seconds until a killed process is started again: longer than its leases last."""

TRIES: Final = 3
_SHOWN: Final = 5


@dataclass(frozen=True, slots=True)
class Explored:
    """``points`` are those that were found, in the order in which they are passed; ``killed`` those that it was killed
    at; ``missed`` those that were not passed again, because what happens is not the same each time."""

    points: Sequence[str]
    killed: Sequence[str]
    missed: Sequence[str]


def explore(
    scenario: Callable[[], CrashScenario[T]],
    *,
    only: str | None = None,
    every: int = 1,
    broker: Broker = "stays",
    postgres: Cluster | None = None,
    within: float = WITHIN,
) -> Explored:
    """Kills the system of ``scenario`` at each of its points in turn, and checks the scenario's invariant.

    ``only`` names one point (else the environment variable ``MICROKIT_CRASH_POINT``); ``every=5`` takes each fifth. The
    ``broker`` stays when the process dies, as Kafka and Redis do, or dies with it, as ``memory://``. The databases
    are files, or on ``postgres`` (the fixture ``postgres_cluster``). ``within`` virtual seconds after it was started
    again the system must have come to rest.

    Raises:
        AssertionError: the invariant does not hold, or the system does not come to rest. The message names the points,
            and how each of them is run alone.
        MicrokitError: nothing is passed at which anything could be lost, or ``only`` names no point.
    """
    with Explorer(scenario, broker, postgres, within) as explorer:
        explorer.arrange()
        points = explorer.discover()
        chosen = chosen_points(points, only, every)
        killed, failures = [], []
        for point in chosen:
            try:
                if explorer.kill(point):
                    killed.append(point)
            except Exception as error:  # noqa: BLE001  told with all others
                killed.append(point)
                failures.append((point, error))
                if len(failures) == _SHOWN:
                    break
    if failures:
        raise AssertionError(report(failures, len(killed))) from failures[0][1]
    return Explored(points, killed, [point for point in chosen if point not in killed])


def chosen_points(points: Sequence[str], only: str | None, every: int) -> Sequence[str]:
    """Those of ``points`` that are to be explored.

    Raises:
        MicrokitError: there are none.
    """
    if not points:
        raise MicrokitError("the scenario commits nothing, publishes nothing and calls nobody: nothing can be lost")
    only = only or os.environ.get(ONLY)
    if only is None:
        return points[::every]
    if only not in points:
        raise MicrokitError(f"no point is called {only!r}. There are:\n" + "\n".join(points))
    return [only]


def report(failures: Sequence[tuple[str, Exception]], killed: int) -> str:
    """What went wrong where, and how to see it again."""
    lines = [f"killed at {killed} points, and at {len(failures)} of them it does not end as it must:"]
    for point, error in failures:
        told = "".join(traceback.format_exception_only(error)).strip().replace("\n", "\n    ")
        lines += [f"- killed {point}:", f"    {told}", f"  only this one: {_again(point)}"]
    return "\n".join(lines)


def _again(point: str) -> str:
    test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
    return f"{ONLY}={shlex.quote(point)} pytest {shlex.quote(test) if test else '...'}"


@dataclass(slots=True)
class _Run(Generic[T]):
    """One playing of the scenario, in one or two lives."""

    scenario: CrashScenario[T]
    world: World
    broker: MemoryBus = field(default_factory=MemoryBus)
    acted: bool = False


class Explorer(Generic[T]):
    """Plays a scenario again and again, in virtual time and in one ``place``."""

    def __init__(
        self, scenario: Callable[[], CrashScenario[T]], broker: Broker, postgres: Cluster | None, within: float
    ) -> None:
        self._make = scenario
        self._broker = broker
        self._postgres = postgres
        self._within = within
        self._stack = ExitStack()
        self._commits = Commits()
        self.clock = VirtualClock()
        self._kept: list[T] = []

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.place = Place(stack.enter_context(short_lived("mkcrash-")), self._postgres)
            stack.callback(self.place.clear)
            stack.enter_context(virtual_time(self.clock))
            stack.enter_context(self._commits.seen())
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def arrange(self) -> None:
        """Brings about what all runs begin with."""
        scenario = self._make()
        world = self.place.world(scenario.system, scenario.settings)

        async def main() -> None:
            bus = WatchedBus(MemoryBus(), Watch(lambda _point: None))
            async with world.alive(bus) as running:
                self._kept.append(await scenario.arrange(running))
                await rest(running, bus, within=self._within)

        Life(self.clock, main).live()
        self.place.keep()

    @property
    def arranged(self) -> T:
        """What ``arrange`` returned."""
        return self._kept[0]

    def discover(self) -> list[str]:
        """The points, in the order in which they are passed."""
        points: list[str] = []
        run = self._next()
        watch = Watch(points.append)
        self._life(run, watch, self._bus_of(run, watch)).live()
        return points

    def kill(self, point: str) -> bool:
        """Kills it at ``point`` and lets it come to rest; whether it passed there.

        Raises:
            Exception: of the invariant.
        """
        return any(self._killed(self._next(), point) for _ in range(TRIES))

    def _killed(self, run: _Run[T], point: str) -> bool:
        def reached(name: str) -> None:
            if name == point:
                watch.on = False
                bus.hang_up()
                first.die()

        watch = Watch(reached)
        bus = self._bus_of(run, watch)
        first = self._life(run, watch, bus)
        first.live()
        if not first.dead:
            return False
        try:
            first.cut(self._commits.take())
            self.clock.leap(DOWN)
            if self._broker == "dies":
                run.broker = MemoryBus()
            unseen = Watch(lambda _point: None)
            self._life(run, unseen, self._bus_of(run, unseen)).live()
        finally:
            first.bury()
            self._commits.abandon()
        return True

    def _next(self) -> _Run[T]:
        self.place.renew()
        scenario = self._make()
        return _Run(scenario, self.place.world(scenario.system, scenario.settings))

    def _bus_of(self, run: _Run[T], watch: Watch) -> WatchedBus:
        return (WatchedSettlingBus if self._broker == "dies" else WatchedBus)(run.broker, watch)

    def _life(self, run: _Run[T], watch: Watch, bus: WatchedBus) -> Life:
        self._commits.watch = watch
        self._commits.take()
        scenario, arranged = run.scenario, self.arranged

        def acted() -> None:
            run.acted = True

        played = Played(scenario, arranged, run.world, within=self._within)
        return Life(self.clock, lambda: played.live(watch, bus, None if run.acted else acted))
