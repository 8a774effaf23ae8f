"""``microkit asyncapi`` and ``microkit events check``, as a person and a pipeline run them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.cli.command import Command

SYSTEM = """
from microkit import Event, Service, System

class Sold(Event, topic="shop.sales", key="sale_id"):
    sale_id: str
    pieces: int
    note: str = ""

shop = Service("shop", title="The shop")
shop.publishes(Sold)
books = Service("books")

@books.on(Sold)
async def book(event: Sold) -> None: ...

system = System("market", services=[shop, books])
"""
CHANGED = SYSTEM.replace("pieces: int", "pieces: int\n    price: int")


@pytest.fixture
def market(command: Command) -> Command:
    (command.folder / "market.py").write_text(SYSTEM)
    (command.folder / "changed.py").write_text(CHANGED)
    (command.folder / "pyproject.toml").write_text('[tool.microkit]\nsystem = "market:system"\n')
    return command


def printed(market: Command, *arguments: str, **env: str) -> str:
    ended = market.run(*arguments, env=env)
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


def test_the_document_of_a_system_and_of_a_service(market: Command) -> None:
    whole = json.loads(printed(market, "asyncapi"))
    one = yaml.safe_load(printed(market, "asyncapi", "shop", "--yaml"))

    assert list(whole["operations"]) == ["books.book.receive", "shop.send.shop.sales"]
    assert whole["info"] == {"title": "market", "version": "0"}
    assert list(one["operations"]) == ["shop.send.shop.sales"]
    assert one["info"]["title"] == "The shop"
    assert one["components"]["schemas"] == whole["components"]["schemas"]


def test_servers_are_named_where_that_is_asked_for_and_without_secrets(market: Command) -> None:
    env = {"BOOKS_BUS_URL": "redis://:s3cretword@redis:6379/0"}

    assert "servers" not in json.loads(printed(market, "asyncapi", **env))
    told = printed(market, "asyncapi", "--servers", **env)
    assert json.loads(told)["servers"]["bus"]["host"] == "redis:6379"
    assert "s3cretword" not in told


def test_a_breaking_change_is_refused_with_a_sentence_and_exit_code_1(market: Command) -> None:
    (market.folder / "old.json").write_text(printed(market, "asyncapi"))
    (market.folder / "new.yaml").write_text(printed(market, "asyncapi", "--system", "changed:system", "--yaml"))

    told = market.run("events", "check", "old.json", "new.yaml")
    as_json = market.run("events", "check", "old.json", "new.yaml", "--json")

    assert (told.returncode, told.stderr, as_json.returncode, as_json.stderr) == (1, "", 1, "")
    assert "REFUSED  shop.sales.Sold /price: the new schema requires it, the old schema does not have it" in told.stdout
    assert told.stdout.endswith("1 refused (mode full).\n")
    found = json.loads(as_json.stdout)
    assert (found["ok"], found["mode"], len(found["findings"])) == (False, "full", 1)
    assert found["findings"][0]["pointer"] == "/components/schemas/Sold/required"
    assert (
        printed(market, "events", "check", "old.json", "new.yaml", "--mode", "forward")
        == "Compatible (mode forward).\n"
    )
    accepted = printed(market, "events", "check", "old.json", "new.yaml", "--accept", "shop.sales.Sold")
    assert accepted.endswith("Compatible, 1 warned of (mode full).\n")


def test_a_document_comes_through_a_pipe(market: Command) -> None:
    document = printed(market, "asyncapi")
    (market.folder / "old.json").write_text(document)

    ended = subprocess.run(
        [sys.executable, "-m", "microkit.cli", "events", "check", "old.json", "-", "--json"],
        cwd=market.folder,
        input=document,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    assert json.loads(ended.stdout) == {"ok": True, "mode": "full", "findings": []}


def written(folder: Path, name: str, content: Any) -> str:
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return name


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["asyncapi", "nobody"], "market has no service 'nobody'; it has: shop, books"),
        (["asyncapi", "shop", "--all"], "Choose shop or --all"),
        (["asyncapi", "--json", "--yaml"], "Choose --yaml or --json"),
        (["events", "check", "-", "-"], "Only one of the two documents can come from stdin"),
        (["events", "check", "good", "none"], "none cannot be read: [Errno 2] No such file or directory: 'none'"),
        (["events", "check", "good", "neither"], "neither is neither JSON nor YAML (line 1)"),
        (
            ["events", "check", "other", "good"],
            "the old document is no AsyncAPI 3 document; `microkit asyncapi` writes one",
        ),
    ],
)
def test_what_cannot_be_done_is_one_sentence(market: Command, arguments: list[str], sentence: str) -> None:
    written(market.folder, "good", {"asyncapi": "3.0.0"})
    written(market.folder, "other", "just a text")
    written(market.folder, "neither", "{ [")

    ended = market.run(*arguments)

    assert (ended.returncode, ended.stderr) == (1, f"microkit: {sentence}\n")
