"""The drill itself: a steady load, and one process after the other restarted meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import aiohttp

from microkit.drill.front import Front
from microkit.drill.load import Load
from microkit.drill.report import Report
from microkit.errors import ConfigurationError, Unavailable

_POLL: Final = 0.05
_PATIENCE: Final = 90.0
"""Seconds until a process that was ended is there again, and until the last answer has come."""

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """``restarts`` in all, going round the copies of all services, and with ``servers`` the database server and the
    broker, too; with ``kill`` by SIGKILL, else in order. Each is ``away`` for so many seconds before it is started
    again. ``rate`` is in requests a second, sent whether or not earlier ones were answered.

    Raises:
        ConfigurationError: servers are to be restarted in order, which nobody would call unnoticed.
    """

    restarts: int = 20
    rate: float = 50.0
    kill: bool = False
    servers: bool = False
    away: float = 0.0

    def __post_init__(self) -> None:
        if not self.kill and (self.servers or self.away):
            raise ConfigurationError("Servers, and what stays away, are for hard kills: say --kill, too")


class Drill:
    """Drills the system behind ``console``, a ``microkit up --real``, with ``load``. ``gateway`` is the service that
    requests go to."""

    def __init__(self, console: str, load: Load, plan: Plan, *, gateway: str = "gateway", tell: Tell) -> None:
        self._console = console
        self._load = load
        self._plan = plan
        self._gateway = gateway
        self._tell = tell
        self._report = Report(plan.kill)
        self._acknowledged: list[int] = []
        self._restarting = "none"

    async def run(self) -> Report:
        """Runs it to its end.

        Raises:
            ConfigurationError: the system is none of processes, or one does not come back.
        """
        async with aiohttp.ClientSession(trust_env=False) as session:
            processes = await self._processes(session)
            doors = [process["url"] for process in processes if process["service"] == self._gateway]
            if not doors:
                raise ConfigurationError(
                    f"No process of {self._gateway} runs behind {self._console}: start `microkit up --real` first"
                )
            if not self._plan.kill and (alone := _alone(processes)):
                self._tell(
                    f"One process alone: {', '.join(alone)}. Requests that need it while it is restarted may fail; "
                    f"with two they do not: microkit up --real {' '.join(f'--scale {name}=2' for name in alone)}"
                )
            async with Front(doors, self._console) as front:
                self._tell("Preparing the load.")
                with _answering("The load cannot be prepared"):
                    await self._load.prepare(front)
                ended = asyncio.Event()
                self._report.began = began = time.monotonic()
                sending = asyncio.create_task(self._send(front, ended))
                try:
                    await self._restart_all(session)
                finally:
                    ended.set()
                    self._report.stopped = time.monotonic()
                    await asyncio.wait([sending], timeout=_PATIENCE)
                self._report.seconds = time.monotonic() - began
                sending.result()
                self._tell("Looking for what was acknowledged.")
                with _answering("What was acknowledged cannot be looked for"):
                    self._report.verdict = await self._load.verify(front, self._acknowledged)
        return self._report

    async def _restart_all(self, session: aiohttp.ClientSession) -> None:
        plan = self._plan
        while self._report.restarts < plan.restarts:
            for process in await self._processes(session):
                wanted = process["kind"] == "service" or plan.servers
                if not wanted or self._report.restarts >= plan.restarts:
                    continue
                self._report.restarts += 1
                self._tell(
                    f"{self._report.restarts}/{plan.restarts}: {process['name']} is "
                    f"{'killed' if plan.kill else 'restarted'}"
                )
                self._restarting = process["name"]
                await self._restart(session, process)
                self._restarting = "none"

    async def _restart(self, session: aiohttp.ClientSession, process: dict[str, Any]) -> None:
        name = process["name"]
        asked = {"by": "SIGKILL" if self._plan.kill else "SIGTERM", "away": self._plan.away}
        until = time.monotonic() + _PATIENCE + self._plan.away
        while (status := await self._end(session, name, asked)) != 200:
            # There is none at the moment: somebody else has ended it, or it has ended by itself.
            if status != 404 or time.monotonic() > until:
                raise ConfigurationError(f"{name} cannot be restarted: the console answered {status}")
            await asyncio.sleep(_POLL)
        while not await self._is_back(session, process):
            if time.monotonic() > until:
                raise ConfigurationError(f"{name} was not ready again within {_PATIENCE:.0f} s")
            await asyncio.sleep(_POLL)

    async def _end(self, session: aiohttp.ClientSession, name: str, asked: Mapping[str, object]) -> int:
        with self._console_answering():
            async with session.post(f"{self._console}/fleet/{name}/end", json=asked) as response:
                return response.status

    async def _is_back(self, session: aiohttp.ClientSession, process: dict[str, Any]) -> bool:
        """Whether another has taken its place, and is ready; for a server, whether all services are."""
        found = await self._processes(session)
        mine = next((each for each in found if each["name"] == process["name"]), None)
        if mine is None or mine["restarts"] <= process["restarts"]:
            return False
        who = [mine] if mine["kind"] == "service" else [each for each in found if each["kind"] == "service"]
        return all(await asyncio.gather(*(_is_ready(session, each["url"]) for each in who)))

    async def _processes(self, session: aiohttp.ClientSession) -> list[dict[str, Any]]:
        with self._console_answering():
            async with session.get(f"{self._console}/fleet") as response:
                if response.status != 200:
                    raise ConfigurationError(
                        "The system runs in one process, so that none can be restarted alone: `microkit up --real`"
                    )
                found: list[dict[str, Any]] = (await response.json())["processes"]
                return found

    @contextmanager
    def _console_answering(self) -> Iterator[None]:
        try:
            yield
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ConfigurationError(
                f"The console at {self._console} does not answer ({str(error) or 'no answer in time'}): the system was "
                "ended, so that nothing can be said of this drill; start `microkit up --real` again"
            ) from None

    async def _send(self, front: Front, ended: asyncio.Event) -> None:
        began, number = time.monotonic(), 0
        async with asyncio.TaskGroup() as requests:
            while not ended.is_set():
                requests.create_task(self._one(front, number))
                number += 1
                await asyncio.sleep(max(0.0, began + number / self._plan.rate - time.monotonic()))

    async def _one(self, front: Front, number: int) -> None:
        report = self._report
        report.requests += 1
        began = time.monotonic()
        try:
            status, body = await front.send(self._load.request(number))
        except (aiohttp.ClientError, Unavailable, TimeoutError) as error:
            self._failed(type(error).__name__, str(error) or "no answer in time")
            return
        now = time.monotonic()
        if 200 <= status < 300:
            self._acknowledged.append(number)
            report.latencies.append(now - began)
            report.successes.append(now)
            self._load.answered(number, body)
        else:
            problem = body if isinstance(body, dict) else {}
            kind = str(problem.get("type", "")).removeprefix("urn:problem:")
            self._failed(f"{status} {kind}".rstrip(), str(problem.get("detail", "")))

    def _failed(self, reason: str, detail: str) -> None:
        self._report.not_2xx[reason] += 1
        self._report.first_of_each.setdefault(reason, f"while {self._restarting} was restarted: {detail}")
        self._report.by_process[self._restarting] += 1


@contextmanager
def _answering(what: str) -> Iterator[None]:
    try:
        yield
    except (aiohttp.ClientError, Unavailable, TimeoutError) as error:
        why = str(error) or "no answer in time"
        raise ConfigurationError(f"{what} ({why}): see what `microkit admin health` says of the system") from None


async def _is_ready(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(f"{url}/health/ready", timeout=aiohttp.ClientTimeout(total=2)) as response:
            return response.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False


def _alone(processes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Services of which there is one process. Workers of its own do not help: they end with it."""
    found = Counter(process["service"] for process in processes if process["kind"] == "service")
    return [name for name, number in found.items() if number == 1]
