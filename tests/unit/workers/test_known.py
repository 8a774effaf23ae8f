"""Several workers are one instance to a registry, and to whoever asks on their port whether they are ready."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import aiohttp
import pytest

from microkit import ANYONE, Service
from microkit.instance import Instance
from microkit.placement import Placement
from microkit.testing.consul import ConsulServer
from microkit.web import State
from microkit.web.server import listening
from microkit.workers import known
from microkit.workers.asking import Asked
from microkit.workers.place import Place
from microkit.workers.process import SUPERVISOR
from microkit.workers.slot import Slot
from microkit.workers.supervisor import Supervisor

pytestmark = pytest.mark.anyio


class Standing:
    """A place whose worker is ready when the test says so, and notes what the registry knew when it was ended."""

    def __init__(self, number: int, consul: ConsulServer, told: asyncio.Event) -> None:
        self.number = number
        self.restarts = 0
        self.ready = False
        self.filling = asyncio.Event()
        self.known_at_end: int | None = None
        self.current: Any = self
        self._consul = consul
        self._told = told

    async def fill(self) -> None:
        self.filling.set()
        if self.number == 2:
            await self._told.wait()
        self.ready = True

    async def ask(self, method: str, path: str, body: bytes | None = None) -> Asked:
        return Asked(200 if self.ready and path == "/health/ready" else 503, b"{}")

    def stay_empty(self) -> None: ...

    def end(self) -> None:
        self.known_at_end = len(self._consul.agent.services)
        self.ready = False

    async def ended(self) -> None: ...

    async def kill(self) -> None: ...


async def test_consul_knows_the_shared_port_once_from_the_last_worker_s_start_until_before_the_first_one_s_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(known, "_LOOK", 0.01)
    async with ConsulServer() as consul:
        service, told = Service("door"), asyncio.Event()
        settings = service.settings({"workers": 2, "port": 0, "discovery_url": f"{consul.url}?check=http"})
        supervisor = Supervisor(service.declared, settings, ["false"])
        places: list[Standing] = []

        def place(number: int) -> Slot:
            places.append(Standing(number, consul, told))
            return cast("Slot", places[-1])

        monkeypatch.setattr(supervisor, "_slot", place)
        starting = asyncio.create_task(supervisor.start())
        async with asyncio.timeout(30):
            while not places or not places[-1].filling.is_set():
                await asyncio.sleep(0.005)
            await asyncio.sleep(0.1)  # in which it looks often
            assert consul.agent.services == {}  # one of the two is ready, and the instance is not
            told.set()
            await starting
            while not consul.agent.services:
                await asyncio.sleep(0.005)
        (entry,) = consul.agent.services.values()
        (check,) = entry.checks.values()
        assert f"http://{entry.address}:{entry.port}" == supervisor.url
        assert (check.http, check.status) == (f"{supervisor.url}/health/ready", "passing")

        places[1].ready = False  # its worker ended; another is on its way
        await asyncio.sleep(0.1)
        places[1].ready = True
        await asyncio.sleep(0.1)
        await supervisor.stop()
        assert [place.known_at_end for place in places] == [0, 0]
        assert consul.requests["PUT /v1/agent/service"] == 2  # registered, deregistered, and nothing between


async def test_a_worker_learns_from_the_one_that_looks_after_it_whether_another_is_ready(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service, told = Service("door"), asyncio.Event()
    told.set()
    async with ConsulServer() as consul:
        supervisor = Supervisor(service.declared, service.settings({"workers": 2, "port": 0}), ["false"])
        monkeypatch.setattr(supervisor, "_slot", lambda number: cast("Slot", Standing(number, consul, told)))
        async with supervisor:
            place = Place(1, "1", -1, -1, supervisor._folder / SUPERVISOR)
            first, second = cast("list[Any]", supervisor.slots)
            assert await place.ready()
            first.ready = False
            assert await place.ready()
            second.ready = False
            assert not await place.ready()
        assert not await place.ready()


@pytest.mark.parametrize("state", [State.STARTING, State.DRAINING])
async def test_who_asks_on_the_port_of_all_is_told_that_one_of_them_is_ready(state: State) -> None:
    """Else a check that meets the one worker that is being replaced takes the address of all from the registry."""
    door = Service("door", port=0)

    @door.get("/ping", allow=ANYONE)
    async def ping() -> str:
        return "pong"

    others = True

    async def nothing() -> bytes:
        return b""

    async def forgets(_: bytes) -> None: ...

    async def ready() -> bool:
        return others

    placement = Placement(1, listening("127.0.0.1", 0), listening("127.0.0.1", 0), nothing, forgets, ready)
    async with (
        Instance(door.declared, door.settings({}), placement=placement) as instance,
        aiohttp.ClientSession(instance.url) as session,
    ):

        async def statuses() -> list[int]:
            return [(await session.get(path)).status for path in ("/health/ready", "/health")]

        assert await statuses() == [200, 200]
        instance.health.state = state
        assert await statuses() == [200, 200]
        others = False
        assert await statuses() == [503, 503]
        instance.health.state = State.READY
        assert await statuses() == [200, 200]
