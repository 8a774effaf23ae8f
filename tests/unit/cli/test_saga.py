"""``microkit saga``: on a service's database, on SQLite and on PostgreSQL, as operators use it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa

from microkit.choreography import ProcessMetrics
from microkit.choreography.following import note
from microkit.choreography.tables import process
from microkit.cli import main
from microkit.cli.folder import Note, noted
from microkit.cli.load import load_system
from microkit.db import Database, database_now
from microkit.db.migration import migrate
from microkit.page import PageRequest
from microkit.saga import Saga, SagaEngine
from microkit.saga.view import list_sagas
from microkit.servers.ports import free_ports
from microkit.telemetry import Telemetry
from tests.unit.cli.command import Ended

TRIPS = """
from pydantic import BaseModel
from microkit import (
    NO_EFFECT, Event, Process, Retry, Saga, Service, System, Transaction, compensatable, pivot, retriable
)

class Trip(BaseModel):
    person: str

async def seat(state: Trip, tx: Transaction) -> None: ...
async def free_seat(state: Trip, tx: Transaction) -> None: ...
async def pay(state: Trip) -> None:
    raise TimeoutError("the [bank] does not \\x1b[31manswer")
async def tell(state: Trip, tx: Transaction) -> None: ...

trip = Saga("trip", Trip, [
    compensatable(seat, undo=free_seat),
    pivot(pay, timeout=5, retry=Retry(2, 0, 0)),
    retriable(tell),
])
service = Service("travel", port={port})
service.saga(trip)

class Asked(Event, topic="trips.asked", key="trip"):
    trip: str

class Booked(Event, topic="trips.booked", key="trip"):
    trip: str

asking = Process("asking", by="trip", events=[Asked, Booked], ends=[Booked], stuck_after=600)
service.process(asking)
system = System("trips", services=[service, Service("other", port={other})])
"""


@dataclass
class Desk:
    """The folder of an operator, beside a database in which two trips are stuck at their pivot."""

    folder: Path
    url: str
    run: Callable[..., Ended]

    def work(self, do: Callable[[Database, Saga[Any]], Awaitable[Any]]) -> Any:
        async def inside() -> Any:
            telemetry = Telemetry("travel", exporter="none")
            database = Database(self.url, telemetry=telemetry)
            await database.start()
            try:
                _, system = load_system(None)
                return await do(database, system.services[0].declared.sagas[0])
            finally:
                await database.close()
                await telemetry.close()

        return asyncio.run(inside())

    def carry_on(self) -> None:
        """Has an engine work until nothing is left to do."""

        async def until_rest(database: Database, saga: Saga[Any]) -> None:
            engine = SagaEngine(database, Telemetry("travel", exporter="none"), [saga], {}, poll=0.05)
            await engine.start()
            async with asyncio.timeout(60):
                while True:
                    async with database.transaction(read_only=True) as tx:
                        found = (await list_sagas(tx, PageRequest(limit=100))).items
                    if all(each.status in ("completed", "compensated", "stuck") for each in found):
                        break
                    await asyncio.sleep(0.01)
            await engine.stop(timeout=5)

        self.work(until_rest)

    def status(self, saga_id: str) -> str:
        return str(self.run("saga", "show", saga_id, "--json").document["status"])


@pytest.fixture(params=["sqlite", "postgresql"])
def desk(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Desk]:
    url = f"sqlite+aiosqlite:///{tmp_path}/.microkit/travel.db"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres_url")
        monkeypatch.setenv("TRAVEL_DATABASE_URL", url)
    (tmp_path / ".microkit").mkdir()
    module = f"trips_{uuid4().hex[:8]}"
    port, other = free_ports(2)
    (tmp_path / f"{module}.py").write_text(TRIPS.format(port=port, other=other))
    (tmp_path / "pyproject.toml").write_text(f'[tool.microkit]\nsystem = "{module}:system"\n')
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["microkit", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return Ended(int(ended.value.code or 0), printed.out, printed.err)

    made = Desk(tmp_path, url, run)

    async def begin(database: Database, saga: Saga[Any]) -> None:
        await migrate(database, None)
        async with database.transaction() as tx:
            for person in ("Ada", "Bob"):
                await saga.start(tx, saga.state(person=person))

    made.work(begin)
    made.carry_on()
    yield made
    del sys.modules[module]


def test_an_operator_finds_what_is_stuck_and_ends_it_and_the_audit_trail_says_so(desk: Desk) -> None:
    listed = desk.run("saga", "ls", "--stuck", "--name", "trip", "--since", "1h", "--json").document
    assert [(each["service"], each["status"], each["step"]) for each in listed["sagas"]] == [
        ("travel", "stuck", "pay")
    ] * 2
    assert not listed["more"]
    assert len(desk.run("saga", "ls", "--limit", "1", "--json").document["sagas"]) == 1
    assert desk.run("saga", "ls", "--name", "no-such", "--json").document["sagas"] == []
    assert desk.run("saga", "ls", "--since", "2999-01-01", "--json").document["sagas"] == []
    first, second = (each["id"] for each in listed["sagas"])

    skipped = desk.run("saga", "skip-step", first, "pay", "--as", "ada", "--reason", "paid in cash", "--json")
    assert (skipped.code, skipped.document["status"], skipped.document["step"]) == (0, "running", "tell")
    sure = ("--pivot-did-not-happen", "--as", "bob")
    refused = desk.run("saga", "compensate", second, "--as", "bob")
    assert (refused.code, refused.out) == (1, "")
    assert "may have happened: nothing was changed" in refused.err
    done = desk.run("saga", "compensate", second, *sure)
    assert done.out.startswith(f"compensate of step pay by bob: saga {second} is compensating, at step seat.")
    desk.carry_on()

    assert (desk.status(first), desk.status(second)) == ("completed", "compensated")
    operations = desk.run("saga", "show", first, "--json").document["operations"]
    assert [(each["operation"], each["operator"], each["reason"]) for each in operations] == [
        ("skip-step", "ada", "paid in cash")
    ]
    late = desk.run("saga", "resume", first, "--json")
    assert late.code == 1
    assert late.document["error"].startswith(f"Saga {first} has ended: it is completed since ")
    assert desk.run("saga", "ls", "--stuck").out.strip() == "No saga is stuck."


def test_resume_and_retry_try_again(desk: Desk) -> None:
    first, second = (each["id"] for each in desk.run("saga", "ls", "--json").document["sagas"])
    assert desk.run("saga", "resume", first, "--as", "ada").code == 0
    assert desk.run("saga", "retry-step", second, "pay", "--as", "ada").code == 0
    again = desk.run("saga", "resume", first, "--as", "bob")
    assert again.code == 1
    assert "is running, not stuck: nothing was changed" in again.err
    assert "(before you, ada did resume of step pay, " in again.err
    assert "not at 'tell': nothing was changed" in desk.run("saga", "retry-step", second, "tell").err
    desk.carry_on()

    for saga_id in (first, second):
        steps = desk.run("saga", "show", saga_id, "--json").document["steps"]
        assert [each["step"] for each in steps] == ["seat", "pay", "pay", "pay"]


def test_people_get_tables_and_what_is_not_there_is_a_sentence(desk: Desk) -> None:
    saga_id = desk.run("saga", "ls", "--json").document["sagas"][0]["id"]
    desk.run("saga", "retry-step", saga_id)
    desk.carry_on()
    for arguments, told in (
        (["saga", "ls"], ["Sagas", saga_id, "travel", "stuck", r"the [bank] does not \x1b[31manswer"]),
        (
            ["saga", "show", saga_id],
            ["Steps", "timed-out", "Operators", "retry-step", "It waits for you", '{"person": '],
        ),
        (["saga", "ls", "--database", desk.url], [saga_id]),
        (["saga", "diagram", "trip"], ["flowchart TD", "pivot"]),
    ):
        ended = desk.run(*arguments)
        assert (ended.code, ended.err) == (0, ""), arguments
        assert "\x1b" not in ended.out
        for piece in told:
            assert piece in ended.out, arguments
    for arguments, sentence in (
        (["saga", "show", str(uuid4())], "in travel; `microkit saga ls` lists them"),
        (["saga", "show", "17"], "'17' is no saga's id, and no process in travel"),
        (["saga", "ls", "--service", "other"], "other has no sagas and follows no processes"),
        (["saga", "ls", "--since", "soon"], "--since 'soon' is no time"),
        (["saga", "diagram", "trap"], "There is no saga 'trap'; there is asking, trip (version 1)"),
        (["saga", "resume", saga_id, "--as", " "], "name has 1 to 200 characters"),
    ):
        ended = desk.run(*arguments)
        assert (ended.code, ended.out) == (1, ""), arguments
        assert sentence in ended.err


def test_a_process_is_listed_and_shown_beside_the_sagas_and_moved_on_by_nobody(desk: Desk) -> None:
    saga_id = desk.run("saga", "ls", "--json").document["sagas"][0]["id"]

    async def hear(database: Database, saga: Saga[Any]) -> None:
        _, system = load_system(None)
        [asking] = system.services[0].declared.processes
        metrics = ProcessMetrics(Telemetry("travel", exporter="none"))
        for id_, seen in (("T-1", 2), ("T-2", 1), (saga_id, 1)):
            for event in (kind(trip=id_) for kind in asking.events[:seen]):
                message = event.to_message("web", message_id=f"{id_} {event.event_type}")
                async with database.transaction() as tx:
                    await note(tx, asking, event, message, metrics)
        async with database.transaction() as tx:
            ago = {"heard_at": database_now(-900.0), "stuck_at": database_now(-300.0)}
            await tx.execute(sa.update(process).where(process.c.id == "T-2").values(ago))

    desk.work(hear)

    listed = desk.run("saga", "ls", "--name", "asking", "--json").document
    assert {each["id"]: each["status"] for each in listed["processes"]} == {
        "T-1": "ended",
        "T-2": "stuck",
        saga_id: "running",
    }
    assert (listed["sagas"], listed["more"]) == ([], False)
    assert desk.run("saga", "ls", "--limit", "2", "--name", "asking", "--json").document["more"]
    stuck = desk.run("saga", "ls", "--stuck", "--json").document
    assert [each["id"] for each in stuck["processes"]] == ["T-2"]
    [shown] = desk.run("saga", "show", "T-2", "--json").document["processes"]
    assert (shown["service"], shown["awaits"]) == ("travel", ["trips.booked.Booked"])
    assert [each["event"] for each in shown["events"]] == ["trips.asked.Asked"]
    both = desk.run("saga", "show", saga_id, "--json").document
    assert (both["name"], [each["name"] for each in both["processes"]]) == ("trip", ["asking"])
    for arguments, told in (
        (["saga", "ls"], ["Sagas", "Processes", "T-1", "T-2", "Booked"]),
        (["saga", "show", "T-2"], ["Process T-2", "awaits", "trips.booked.Booked", "stuck since", "Whose turn is it?"]),
        (["saga", "show", "T-1", "--database", desk.url], ["Process T-1", "ended by"]),
        (["saga", "diagram", "asking"], ["flowchart TD", "Booked<br/>trips.booked"]),
    ):
        ended = desk.run(*arguments)
        assert (ended.code, ended.err) == (0, ""), arguments
        for piece in told:
            assert piece in ended.out, (arguments, ended.out)
    moved = desk.run("saga", "retry-step", "T-2")
    assert moved.code == 1
    assert "T-2 is the process asking, known by its events alone: nothing carries it out" in moved.err


@pytest.mark.parametrize("desk", ["sqlite"], indirect=True)
def test_the_database_that_up_uses_is_found_where_no_setting_names_one(desk: Desk) -> None:
    """As that of `up --real` and `up --database-url`, which is no file in the folder."""
    elsewhere = desk.folder / "elsewhere.db"
    (desk.folder / ".microkit" / "travel.db").rename(elsewhere)
    note = Note(
        "trips:system", os.getpid(), "http://127.0.0.1:1", {}, {}, {"travel": f"sqlite+aiosqlite:///{elsewhere}"}
    )
    with noted(desk.folder / ".microkit", note):
        assert len(desk.run("saga", "ls", "--stuck", "--json").document["sagas"]) == 2
