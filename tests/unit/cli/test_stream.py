"""The stream of ``up --real``: each line says whose it is, and one that cannot be written stops nobody."""

from __future__ import annotations

import json
import os
from pathlib import Path

from microkit.cli.stream import LogStream

LOGGED = "10:59:57.756 ERROR   payment      saga engine: claim failed"


def test_every_line_says_whose_it_is(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as file:
        stream = LogStream(file, {"payment", "billing"}, json=False)
        stream.line("payment", LOGGED)
        stream.line("payment", "    | Traceback (most recent call last):")
        stream.line("payment", "the process was ended by SIGKILL; a new one is started")
        stream.line("billing-2", LOGGED.replace("payment", "billing"))
        stream.line("postgresql", "PostgreSQL has ended; it is started again")
    assert (tmp_path / "log").read_text().splitlines() == [
        LOGGED,
        "payment:     | Traceback (most recent call last):",
        "payment: the process was ended by SIGKILL; a new one is started",
        f"billing-2: {LOGGED.replace('payment', 'billing')}",
        "postgresql: PostgreSQL has ended; it is started again",
    ]


def test_in_json_every_line_is_a_document(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as file:
        stream = LogStream(file, {"payment"}, json=True)
        stream.line("payment", '{"message":"ready"}')
        stream.line("payment-2", '{"message":"ready"}')
        stream.line("payment", "the process was ended by SIGKILL; a new one is started")
        stream.line("redis", "{a brace}")
    first, second, third, fourth = map(json.loads, (tmp_path / "log").read_text().splitlines())
    assert first == {"message": "ready"}
    assert second == {"instance": "payment-2", "message": "ready"}
    assert third["service"] == "payment"
    assert third["message"].startswith("the process was ended")
    assert fourth["message"] == "{a brace}"


def test_lines_that_find_no_room_are_counted_and_told_of_later() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)  # a full pipe refuses, as a full disk does
    with open(reading, "rb", buffering=0) as reader, open(writing, "w") as file:
        stream = LogStream(file, {"payment"}, json=False)
        filler = os.write(writing, b"x" * 1_000_000)
        stream.line("payment", LOGGED)
        while filler:
            filler -= len(reader.read(filler))
        stream.line("payment", LOGGED)
        told = reader.read(10_000).decode().split("\n")
    assert told == ["", "microkit: lines before this one that could not be written: 1", LOGGED, ""]


def test_a_reader_that_has_gone_takes_no_process_along() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as file:
        LogStream(file, {"payment"}, json=False).line("payment", LOGGED)
