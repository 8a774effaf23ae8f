"""Virtual time: the clock goes on by itself, and leaps to the next timer whenever nothing can move before it.

What a program sees of the time is moved together: the event loop's timers, ``time.monotonic()``, the wall clock
(``datetime.now()``, ``time.time()``, with the package time-machine) and the clocks of SQLite and PostgreSQL (see
:mod:`microkit.testing.database_clock`). So leases, deadlines, backoff and time-outs mean in a test what they mean in
production, and a day of waiting takes milliseconds. Nothing of it is in the library: it is put in from outside, for as
long as :func:`virtual_time` lasts.
"""

from __future__ import annotations

import asyncio
import selectors
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar
from unittest import mock

import anyio.to_thread
from sqlalchemy import Engine, event
from sqlalchemy.pool import Pool

from microkit.errors import MicrokitError, MissingExtra
from microkit.testing.database_clock import alone, bring_to, prepare

R = TypeVar("R")

_monotonic: Final = time.monotonic
_run_sync: Final = anyio.to_thread.run_sync

STILL: Final = 0.0002
"""Real seconds without any movement after which the clock may leap, when nobody is known to be at work: what one end of
a connection has sent, the other has by then."""

PATIENCE: Final = 2.0
"""The same, while a connection of a database is in use. Longer than a statement takes; and whoever sleeps inside a
transaction is waited for no longer."""

_ONE_AT_A_TIME: Final = threading.Lock()


class VirtualClock:
    """``skipped`` is how many seconds were leapt over. ``watch`` is told each time that they have become more."""

    def __init__(self, skipped: float = 0.0, watch: Callable[[float], None] = lambda _skipped: None) -> None:
        self.skipped = skipped
        self._watch = watch
        self._at_work: set[object] = set()
        self._connecting: set[object] = set()
        self._threads: set[object] = set()
        self._shift: Callable[[float], None] = lambda _seconds: None

    def monotonic(self) -> float:
        return _monotonic() + self.skipped

    def leap(self, seconds: float) -> None:
        """Skips ``seconds``."""
        self.skipped += seconds
        self._shift(seconds)
        self._watch(self.skipped)

    @property
    def busy(self) -> bool:
        """Whether a database is at work."""
        return bool(self._at_work or self._connecting)

    @property
    def threads(self) -> set[object]:
        """Those at work in threads, for whom the clock waits as long as they take."""
        return self._threads

    def begin(self, worker: object) -> None:
        """Keeps the clock from leaping until :meth:`end`."""
        self._at_work.add(worker)

    def end(self, worker: object) -> None:
        self._at_work.discard(worker)

    def forget(self) -> None:
        """Nobody is at work any more: they were all killed."""
        for workers in (self._at_work, self._connecting, self._threads):
            workers.clear()

    def give_up(self) -> None:
        """Waits no more for connections that are being opened: nobody is told when that fails."""
        self._connecting.clear()

    @contextmanager
    def everywhere(self) -> Iterator[None]:
        """Makes it the clock of the whole process, and of the databases to which connections are opened meanwhile."""
        time_machine = _time_machine()
        now = time.time()
        with (
            time_machine.travel(now + self.skipped, tick=True) as traveller,
            mock.patch.object(time, "monotonic", self.monotonic),
            mock.patch.object(anyio.to_thread, "run_sync", self._in_thread),
            _listening(Pool, self._of_pools()),
            alone(self.begin, self.end),
            _listening(Engine, {"do_connect": self._open}),
        ):
            self._shift = traveller.shift
            try:
                yield
            finally:
                self._shift = lambda _seconds: None

    async def _in_thread(self, *arguments: Any, **options: Any) -> Any:
        worker = object()
        self._threads.add(worker)
        try:
            return await _run_sync(*arguments, **options)
        finally:
            self._threads.discard(worker)

    def _open(self, dialect: object, record: Any, *_: object) -> None:
        if isinstance(loop := asyncio.get_running_loop(), VirtualLoop) and loop.dead:
            raise ConnectionRefusedError("the process was killed")
        self._connecting.add(record)

    def _of_pools(self) -> dict[str, Callable[..., None]]:
        def connect(connection: Any, record: Any) -> None:
            prepare(connection)

        def checkout(connection: Any, record: Any, proxy: object) -> None:
            self.begin(record)
            self._connecting.discard(record)
            bring_to(connection, record.info, self.skipped)

        def checkin(connection: Any, record: Any) -> None:
            self.end(record)

        return {"connect": connect, "checkout": checkout, "checkin": checkin}


@contextmanager
def _listening(whom: type[Any], events: dict[str, Callable[..., None]]) -> Iterator[None]:
    for name, listener in events.items():
        event.listen(whom, name, listener)
    try:
        yield
    finally:
        for name, listener in events.items():
            event.remove(whom, name, listener)


@contextmanager
def virtual_time(clock: VirtualClock | None = None) -> Iterator[VirtualClock]:
    """Virtual time for the block, in which event loops are made by :func:`new_loop`.

    Raises:
        MicrokitError: another block has it already: there is one clock in a process.
        MissingExtra: the package time-machine is not installed.
    """
    if not _ONE_AT_A_TIME.acquire(blocking=False):
        raise MicrokitError("virtual time is on already: one scenario or exploration runs in a process at a time")
    try:
        made = clock or VirtualClock()
        with made.everywhere():
            yield made
    finally:
        _ONE_AT_A_TIME.release()


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose timers go by a virtual clock. ``sockets`` is what it listens to,
    ``own`` the descriptors of its own among them; in a ``dead`` one no database is opened any more."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.dead = False
        self.sockets = _LeapingSelector(clock)
        super().__init__(self.sockets)
        self.own = {key.fd for key in self.sockets.get_map().values()}

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:  # type: ignore[override]  # typed by its callers
        future = super().run_in_executor(executor, func, *args)
        self.clock.threads.add(future)
        future.add_done_callback(self.clock.threads.discard)
        return future


class _LeapingSelector(selectors.DefaultSelector):
    """Instead of waiting for ``timeout`` seconds it lets them pass, when nothing happens by itself."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or (timeout is not None and timeout <= 0):
            return ready
        until = None if timeout is None else _monotonic() + timeout
        while True:
            if self._clock.busy or until is None:
                left = PATIENCE if until is None else min(PATIENCE, until - _monotonic())
                ready = super().select(max(0.0, left))
            else:
                time.sleep(STILL)
                ready = super().select(0)
            if ready:
                return ready
            if self._clock.threads and (until is None or _monotonic() < until):
                continue
            self._clock.give_up()
            if until is not None:
                self._clock.leap(max(0.0, until - _monotonic()))
                return []


def new_loop(clock: VirtualClock) -> Callable[[], asyncio.AbstractEventLoop]:
    """What makes event loops for ``asyncio.Runner(loop_factory=…)`` under ``clock``."""
    return lambda: VirtualLoop(clock)


def run_virtually(work: Callable[[VirtualClock], Coroutine[Any, Any, R]]) -> R:
    """Runs ``work`` to its end in virtual time, in a thread of its own, so that it can be called from anywhere."""
    outcome: list[R] = []
    failures: list[BaseException] = []

    def body() -> None:
        try:
            with virtual_time() as clock, asyncio.Runner(loop_factory=new_loop(clock)) as runner:
                outcome.append(runner.run(work(clock)))
        except BaseException as error:  # noqa: BLE001  it is raised again, where it is waited for
            failures.append(error)

    thread = threading.Thread(target=body, name="virtual time")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return outcome[0]


def _time_machine() -> Any:
    try:
        import time_machine  # noqa: PLC0415  an extra
    except ImportError as error:
        if error.name == "time_machine":
            raise MissingExtra("Virtual time", "testing") from error
        raise
    return time_machine
