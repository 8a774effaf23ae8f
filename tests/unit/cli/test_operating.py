"""``microkit dlq``, ``bus`` and ``outbox`` beside a running system, on the bus in its memory and on a broker."""

from __future__ import annotations

import json
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from microkit.cli import main
from microkit.servers.ports import free_ports
from tests.unit.cli.command import Command, Ended

SHOP = """
from pathlib import Path
from microkit import ANYONE, Event, Service, System, Transaction
from microkit.errors import UndecodableMessage

HERE = Path(__file__).parent

class OrderPlaced(Event, topic="shop.orders", key="order"):
    order: str
    number: int

def note(group, event):
    with (HERE / "effects").open("a") as effects:
        effects.write(f"{{group}} {{event.order}} {{event.number}}\\n")

till = Service("till", port={till})

@till.post("/orders/{{order}}/{{number}}", allow=ANYONE)
async def place(order: str, number: int, tx: Transaction) -> None:
    tx.publish(OrderPlaced(order=order, number=number))

@till.on(OrderPlaced)
async def count(event: OrderPlaced, tx: Transaction) -> None:
    note("till.count", event)

@till.on(OrderPlaced)
async def tell(event: OrderPlaced) -> None:
    note("till.tell", event)

stock = Service("stock", port={stock})

@stock.on(OrderPlaced)
async def reserve(event: OrderPlaced, tx: Transaction) -> None:
    if event.order.startswith("broken") and not (HERE / event.order).exists():
        raise UndecodableMessage("no-shelf", "there is \\x1b[31mno shelf")
    note("stock.reserve", event)

system = System("shop", services=[till, stock])
"""

Run = Callable[..., Ended]


@dataclass
class Shop:
    """A system that runs in another process."""

    command: Command
    module: str
    bus: str

    @property
    def system(self) -> str:
        return f"{self.module}:system"

    def place(self, order: str, *numbers: int) -> None:
        for number in numbers:
            url = f"http://127.0.0.1:{self.command.ports[0]}/orders/{order}/{number}"
            with urllib.request.urlopen(urllib.request.Request(url, method="POST"), timeout=30) as answer:
                assert answer.status == 200

    def mend(self, order: str) -> None:
        (self.command.folder / order).touch()

    def effects(self, order: str) -> list[tuple[str, int]]:
        """What was done for an order, as group and number, in its order."""
        path = self.command.folder / "effects"
        lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        return [(group, int(number)) for group, name, number in lines if name == order]


def new_shop(folder: Path, bus: str) -> Shop:
    shop = Shop(Command(folder, free_ports(3)), f"shop_{uuid4().hex[:8]}", bus)
    till, stock, _ = shop.command.ports
    (folder / f"{shop.module}.py").write_text(SHOP.format(till=till, stock=stock))
    (folder / "pyproject.toml").write_text(f'[tool.microkit]\nsystem = "{shop.system}"\n')
    return shop


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.xdist_group(f"shop on {name}")) for name in ("memory", "redis")],
)
def shop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    bus = "memory://"
    if request.param == "redis":
        bus = f"{request.getfixturevalue('valkey_server').url}?prefix={uuid4().hex}&partitions=3"
    made = new_shop(tmp_path_factory.mktemp("shop"), bus)
    with made.command.up("--redis-url" if request.param == "redis" else "--bus", bus):
        yield made


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest) -> Run:
    """Runs a command here, in the folder of the shop: a process for each would take longer than what it does."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    if "shop" in request.fixturenames:
        monkeypatch.chdir(request.getfixturevalue("shop").command.folder)

    def go(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["microkit", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return Ended(int(ended.value.code or 0), printed.out, printed.err)

    return go


def until(condition: Callable[[], Any], *, within: float = 60.0) -> Any:
    end = time.monotonic() + within
    while not (found := condition()):
        assert time.monotonic() < end, "it never came about"
        time.sleep(0.05)
    return found


def give_up(shop: Shop, run: Run, order: str, *numbers: int) -> list[Any]:
    """Orders that ``stock`` gives up; their dead letters."""
    shop.place(order, *numbers)

    def letters() -> Any:
        found = run("dlq", "ls", "--key", order, "--json").document
        return found["letters"] if found["total"] == len(numbers) else None

    return list(until(letters))


def test_a_dead_letter_is_listed_shown_and_redriven_for_its_group_alone(shop: Shop, run: Run) -> None:
    order = "broken-1"
    letters = give_up(shop, run, order, 1, 2, 3)
    give_up(shop, run, "broken-other", 9)
    assert {(letter["service"], letter["group"], letter["reason"]) for letter in letters} == {
        ("stock", "stock.reserve", "no-shelf")
    }
    for name in (letters[0]["id"], letters[0]["event_id"]):
        (shown,) = run("dlq", "show", name, "--json").document["letters"]
        assert shown["value"] == {"order": order, "number": 1}
        assert shown["headers"]["mk_dlq_topic"] == shown["topic"] == "shop.orders"
    until(lambda: len(shop.effects(order)) == 6)

    if shop.bus != "memory://":  # the broker itself can be asked too
        there = run("dlq", "ls", "--key", order, "--bus", shop.bus, "--json").document["letters"]
        assert [letter["event_id"] for letter in there] == [letter["event_id"] for letter in letters]

    tried = run("dlq", "redrive", "--key", order, "--dry-run", "--json")
    assert (tried.code, tried.document["redriven"], tried.document["dry_run"]) == (0, 3, True)
    assert run("dlq", "ls", "--key", order, "--json").document["total"] == 3

    shop.mend(order)
    driven = run("dlq", "redrive", "--key", order, "--rate", "50", "--json")
    assert (driven.code, driven.document["redriven"], driven.document["refused"]) == (0, 3, 0)
    assert run("dlq", "ls", "--json", "--key", order).document == {"letters": [], "total": 0}
    until(lambda: len(shop.effects(order)) >= 9)
    effects = shop.effects(order)
    assert [number for group, number in effects if group == "stock.reserve"] == [1, 2, 3]
    assert [number for group, number in effects if group == "till.tell"] == [1, 2, 3]
    assert run("dlq", "ls", "--json", "--key", "broken-other").document["total"] == 1
    assert run("dlq", "show", letters[0]["id"]).code == 1


def test_what_came_back_too_often_stays(shop: Shop, run: Run) -> None:
    order = "broken-2"
    give_up(shop, run, order, 1)
    assert run("dlq", "redrive", "--key", order).code == 0

    def again() -> Any:
        return run("dlq", "ls", "--key", order, "--json").document["letters"]

    (letter,) = until(again)
    assert letter["replays"] == 1

    refused = run("dlq", "redrive", letter["id"], "--max-replays", "1", "--json")

    assert refused.code == 1
    assert refused.document["redriven"] == 0
    assert "redriven 1 times already" in refused.document["letters"][0]["refused"]
    assert run("dlq", "ls", "--key", order, "--json").document["total"] == 1


def test_a_letter_for_a_group_that_nobody_has_stays(shop: Shop, run: Run) -> None:
    (letter,) = give_up(shop, run, "broken-3", 1)

    refused = run("dlq", "redrive", letter["id"], "--to", "stock.reserv", "--json")

    assert refused.code == 1
    assert "nobody has the group stock.reserv" in refused.document["letters"][0]["refused"]


def test_people_get_tables_and_what_came_in_a_message_does_not_speak_to_their_terminal(shop: Shop, run: Run) -> None:
    (letter,) = give_up(shop, run, "broken-4", 1)
    for arguments, told in (
        (["dlq", "ls", "--key", "broken-4"], ["Dead letters: 1", letter["id"], "stock.reserve", r"\x1b[31m"]),
        (["dlq", "show", letter["id"]], ["mk_dlq_reason", "no-shelf", '{"order": "broken-4", "number": 1}']),
        (["dlq", "redrive", "--key", "broken-4", "--dry-run"], ["would go", "1 would go, 0 stay."]),
        (["bus", "topics"], ["shop.orders", "stock.reserve"]),
        (["bus", "lag"], ["till.count", "shop.orders", "waiting"]),
        (["outbox", "status"], ["till", "published", "Relays at work"]),
        (["outbox", "replay", "--since", "1h", "--topic", "no.such.topic"], ["will be published again"]),
        (["outbox", "unpark"], ["will be tried again"]),
    ):
        ended = run(*arguments)
        assert (ended.code, ended.err) == (0, ""), arguments
        assert "\x1b" not in ended.out
        for piece in told:
            assert piece in ended.out, arguments


def test_the_bus_tells_its_topics_its_lag_and_its_messages(shop: Shop, run: Run) -> None:
    shop.place("seen", 1, 2)
    until(lambda: len(shop.effects("seen")) == 6)
    topics = {topic["name"]: topic for topic in run("bus", "topics", "--json").document["topics"]}
    assert topics["shop.orders"]["groups"] == ["stock.reserve", "till.count", "till.tell"]
    until(lambda: sum(each["waiting"] for each in run("bus", "lag", "--json").document["lag"]) == 0)
    groups = {each["group"] for each in run("bus", "lag", "--service", "stock", "--json").document["lag"]}
    assert groups == {"stock.reserve"}
    lines = [json.loads(line) for line in run("bus", "tail", "shop.orders", "--json", "-n", "500").out.splitlines()]
    if shop.bus == "memory://":
        assert lines == [], "it keeps nothing that all groups have had"
    else:
        assert [line["value"]["number"] for line in lines if line["key"] == "seen"] == [1, 2]
        assert "OrderPlaced" in run("bus", "tail", "shop.orders").out


def test_the_outbox_is_counted_and_replayed_and_effects_happen_once(shop: Shop, run: Run) -> None:
    shop.place("again", 1)
    until(lambda: len(shop.effects("again")) == 3)

    def published() -> Any:
        outboxes = {each["service"]: each for each in run("outbox", "status", "--json").document["outboxes"]}
        assert set(outboxes) == {"till", "stock"}
        return [topic["published"] for topic in outboxes["till"]["topics"] if not topic["pending"]]

    until(published)
    chosen = ("outbox", "replay", "--since", "1h", "--key", "again", "--service", "till", "--json")
    assert run(*chosen, "--dry-run").document["outboxes"] == [{"service": "till", "rows": 1}]
    assert run(*chosen).document["outboxes"] == [{"service": "till", "rows": 1}]

    until(lambda: len(shop.effects("again")) == 4)
    assert sorted(shop.effects("again")) == [
        ("stock.reserve", 1),
        ("till.count", 1),
        ("till.tell", 1),
        ("till.tell", 1),  # it takes no Transaction
    ]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["dlq", "show", "nothing"], "There is no dead letter nothing; `microkit dlq ls` lists those there are"),
        (["dlq", "redrive", "nothing"], "There is no dead letter nothing; `microkit dlq ls` lists them"),
        (["bus", "tail", "nothing"], "There is no topic nothing; there are: shop.orders"),
        (["bus", "lag", "--group", "nobody"], "There is no group nobody; `microkit bus lag` without --group"),
        (["outbox", "replay", "--since", "soon"], "--since 'soon' is no time; an example: --since 15m"),
        (["dlq", "ls", "--service", "nobody"], "shop has no service 'nobody'; it has: till, stock"),
        (["bus", "topics", "--bus", "http://x"], "bus_url: http:// names no bus"),
        (["dlq", "redrive", "--database", "sqlite+aiosqlite:///x.db"], "Whose outbox is that?"),
        (["outbox", "status", "--database", "sqlite+aiosqlite:///no.db"], "There is no database 'no.db'"),
        (["outbox", "status", "--database", "nonsense"], "'nonsense' is no database"),
    ],
)
def test_what_is_wrong_is_one_sentence(shop: Shop, run: Run, arguments: list[str], sentence: str) -> None:
    failed = run(*arguments, "--json")

    assert failed.code == 1
    assert failed.err.startswith(f"microkit: {sentence}"), failed.err
    assert failed.document["error"] in failed.err
    assert failed.err.count("\n") == 1


def test_where_nothing_runs_the_bus_in_memory_is_not_there(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = new_shop(tmp_path, "memory://")
    monkeypatch.chdir(tmp_path)

    for arguments in (["bus", "topics"], ["bus", "lag"], ["bus", "tail", "shop.orders"]):
        failed = run(*arguments)
        assert (failed.code, failed.out) == (1, "")
        assert "The bus memory:// lives in a running `microkit up`, and none runs in the folder .microkit" in failed.err
    for arguments in (["dlq", "ls"], ["outbox", "status"]):
        failed = run(*arguments)
        assert failed.code == 1
        assert "There is no database '.microkit/till.db'" in failed.err
    assert shop.effects("any") == []


def test_a_broker_that_is_not_there_is_one_sentence_without_its_password(run: Run) -> None:
    failed = run("bus", "topics", "--bus", "redis://:s3cretword@127.0.0.1:1/0")

    assert failed.code == 1
    assert failed.err.startswith("microkit: The bus redis://:***@127.0.0.1:1/0 cannot be reached")
    assert failed.err.count("\n") == 1


def test_a_letter_redriven_while_nothing_runs_is_handled_at_the_next_start(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = new_shop(tmp_path, "memory://")
    monkeypatch.chdir(tmp_path)
    with shop.command.up():
        give_up(shop, run, "broken", 1, 2)
    assert run("dlq", "ls", "--json").document["total"] == 2
    shop.mend("broken")

    assert run("dlq", "redrive", "--service", "stock", "--json").document["redriven"] == 2

    assert run("dlq", "ls", "--json").document["total"] == 0
    with shop.command.up():
        until(lambda: [number for group, number in shop.effects("broken") if group == "stock.reserve"] == [1, 2])

        def settled() -> Any:
            outboxes = {each["service"]: each for each in run("outbox", "status", "--json").document["outboxes"]}
            return [topic["published"] for topic in outboxes["stock"]["topics"]] == [2]

        until(settled)
    assert len([group for group, _ in shop.effects("broken") if group == "till.tell"]) == 2
