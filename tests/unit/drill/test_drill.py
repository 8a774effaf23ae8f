"""The drill against a system of scripted processes: what it counts, and what it calls broken."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from microkit.drill import Door, Drill, Outgoing, Plan, Verdict
from microkit.errors import ConfigurationError
from microkit.web import Server

pytestmark = pytest.mark.anyio


@dataclass
class Scripted:
    """A console and a gateway in one. While ``failing`` says so, every so manieth request is answered 500."""

    url: str = ""
    failing: int = 0
    served: list[str] = field(default_factory=list)
    restarts: Counter[str] = field(default_factory=Counter)
    away: list[float] = field(default_factory=list)
    ended_by: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    alone_after: int = 1_000_000
    """Answers with success after which there are none."""
    gone: int = 0
    """How often it is said that no such process runs."""

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/fleet", self.fleet),
                Route("/fleet/{name}/end", self.end, methods=["POST"]),
                Route("/health/ready", self.ready),
                Route("/things", self.make, methods=["POST"]),
            ]
        )

    async def fleet(self, _: Request) -> Response:
        gateway: dict[str, Any] = {"name": "gateway", "kind": "service", "service": "gateway", "url": self.url}
        server = {"name": "redis", "kind": "server", "service": None, "url": ""}
        others = [{**gateway, "name": f"{name}-{n}", "service": name} for n, name in enumerate(self.others, 1)]
        processes = [
            {**process, "restarts": self.restarts[str(process["name"])]} for process in (gateway, *others, server)
        ]
        return JSONResponse({"processes": processes})

    async def end(self, request: Request) -> Response:
        asked = await request.json()
        if self.gone:
            self.gone -= 1
            return JSONResponse({}, 404)
        self.ended_by.append(f"{request.path_params['name']} {asked['by']}")
        self.away.append(asked["away"])
        await asyncio.sleep(0.1)  # what a restart takes, in which requests come
        self.restarts[request.path_params["name"]] += 1
        return JSONResponse({})

    async def ready(self, _: Request) -> Response:
        return JSONResponse({})

    async def make(self, request: Request) -> Response:
        self.served.append(str(await request.json()))
        broken = (self.failing and len(self.served) % self.failing == 0) or len(self.served) > self.alone_after
        problem = {"type": "urn:problem:too-warm", "detail": "The shelf is too warm."}
        return JSONResponse(problem, 500) if broken else JSONResponse({}, 201)


@dataclass
class Things:
    """``missing`` of what was acknowledged are not there in the end."""

    missing: int = 0
    acknowledged: list[int] = field(default_factory=list)

    async def prepare(self, door: Door) -> None: ...

    def request(self, number: int) -> Outgoing:
        return Outgoing("POST", "/things", number)

    def answered(self, number: int, body: Any) -> None: ...

    async def verify(self, door: Door, acknowledged: Collection[int]) -> Verdict:
        self.acknowledged = sorted(acknowledged)
        return Verdict(lost=[str(number) for number in self.acknowledged[: self.missing]])


@pytest.fixture
async def scripted() -> AsyncIterator[Scripted]:
    made = Scripted()
    server = Server(made.app())
    await server.start()
    made.url = server.url
    yield made
    await server.stop(1)


@dataclass
class Unprepared(Things):
    """Its first request goes to nobody who answers."""

    trouble: type[Exception] = TimeoutError

    async def prepare(self, door: Door) -> None:
        raise self.trouble


async def drilled(scripted: Scripted, load: Things, plan: Plan) -> dict[str, Any]:
    return (await Drill(scripted.url, load, plan, tell=lambda _: None).run()).document()


async def test_what_was_answered_with_success_is_looked_for_and_services_are_restarted_in_turn(
    scripted: Scripted,
) -> None:
    load = Things()
    found = await drilled(scripted, load, Plan(restarts=5, rate=200))
    assert found["ok"]
    assert scripted.ended_by == ["gateway SIGTERM"] * 5
    assert found["requests"] == len(load.acknowledged) == len(scripted.served) > 0
    assert (found["not_2xx"], found["lost"], found["restarts"]) == (0, 0, 5)


async def test_an_answer_that_is_no_success_breaks_the_promise_of_a_rolling_restart(scripted: Scripted) -> None:
    scripted.failing = 3
    found = await drilled(scripted, load := Things(), Plan(restarts=5, rate=200))
    assert not found["ok"]
    assert found["reasons"] == {"500 too-warm": found["not_2xx"]}
    assert found["first_of_each"]["500 too-warm"].endswith("was restarted: The shelf is too warm.")
    assert sum(found["not_2xx_while_restarting"].values()) == found["not_2xx"]
    assert len(load.acknowledged) == found["requests"] - found["not_2xx"]


async def test_after_hard_kills_only_lost_and_doubled_effects_break_the_promise(scripted: Scripted) -> None:
    scripted.failing = 3
    assert (await drilled(scripted, Things(), Plan(restarts=5, rate=200, kill=True)))["ok"]
    assert scripted.ended_by == ["gateway SIGKILL"] * 5
    lossy = await drilled(scripted, Things(missing=1), Plan(restarts=5, rate=200, kill=True))
    assert (lossy["ok"], lossy["lost"], len(lossy["examples"])) == (False, 1, 1)


async def test_servers_are_killed_too_where_that_is_asked_for_and_stay_away_as_long_as_is_said(
    scripted: Scripted,
) -> None:
    found = await drilled(scripted, Things(), Plan(restarts=4, rate=50, kill=True, servers=True, away=2.5))
    assert (found["ok"], found["restarts"]) == (True, 4)
    assert scripted.ended_by == ["gateway SIGKILL", "redis SIGKILL"] * 2
    assert scripted.away == [2.5] * 4


@pytest.mark.parametrize("wrong", [{"servers": True}, {"away": 1.0}])
def test_what_only_kills_can_do_is_refused_for_a_rolling_restart(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="--kill"):
        Plan(**wrong)


async def test_a_system_in_one_process_cannot_be_drilled() -> None:
    server = Server(Starlette())
    await server.start()
    with pytest.raises(ConfigurationError, match="microkit up --real"):
        await Drill(server.url, Things(), Plan(), tell=lambda _: None).run()
    await server.stop(1)


async def test_of_whom_there_is_one_process_it_is_said_that_a_restart_is_noticed(scripted: Scripted) -> None:
    said: list[str] = []
    scripted.others = ["till", "till"]
    await Drill(scripted.url, Things(), Plan(restarts=1), tell=said.append).run()
    assert said[0] == (
        "One process alone: gateway. Requests that need it while it is restarted may fail; with two they do not: "
        "microkit up --real --scale gateway=2"
    )
    said.clear()
    scripted.others = ["gateway", "till"]
    await Drill(scripted.url, Things(), Plan(restarts=1), tell=said.append).run()
    assert said[0].startswith("One process alone: till.")
    said.clear()
    await Drill(scripted.url, Things(), Plan(restarts=1, kill=True), tell=said.append).run()
    assert said[0] == "Preparing the load."


async def test_a_time_without_success_at_the_end_is_a_gap_as_any_other(scripted: Scripted) -> None:
    scripted.alone_after = 3
    found = await drilled(scripted, Things(), Plan(restarts=5, rate=100, kill=True))
    assert found["longest_gap_ms"] > 300  # five restarts of a tenth of a second each


async def test_a_process_that_somebody_else_has_ended_is_waited_for(scripted: Scripted) -> None:
    scripted.gone = 2
    assert (await drilled(scripted, Things(), Plan(restarts=2)))["restarts"] == 2
    assert len(scripted.ended_by) == 2


@pytest.mark.parametrize("trouble", [TimeoutError, aiohttp.ServerDisconnectedError])
async def test_a_system_that_does_not_answer_is_one_sentence(scripted: Scripted, trouble: type[Exception]) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot be prepared .*: see what `microkit admin health` says"):
        await drilled(scripted, Unprepared(trouble=trouble), Plan())


async def test_a_system_that_is_ended_meanwhile_is_one_sentence() -> None:
    made, load = Scripted(), Things()
    server = Server(made.app())
    await server.start()
    made.url = server.url
    drilling = asyncio.create_task(drilled(made, load, Plan(restarts=1000, rate=100)))
    async with asyncio.timeout(30):
        while not made.ended_by:
            await asyncio.sleep(0.01)
    await server.stop(10)
    with pytest.raises(ConfigurationError, match=r"does not answer .*: the system was ended.*start `microkit up"):
        await drilling
