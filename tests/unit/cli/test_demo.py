"""``microkit demo`` against a running system."""

from __future__ import annotations

import json

from tests.unit.cli.command import Command


def test_a_story_that_holds_exits_with_0_and_json_alone(command: Command) -> None:
    with command.up("tiny:system"):
        told = command.run("demo", "--json")
    assert (told.returncode, told.stderr) == (0, "")
    document = json.loads(told.stdout)
    assert document["ok"] is True
    assert [check["sentence"] for check in document["checks"]] == ["It is answered", "One trace crosses both"]
    assert [call["status"] for call in document["calls"]] == [200]
    assert document["events"] == document["sagas"] == []


def test_a_check_that_does_not_hold_exits_with_1(command: Command) -> None:
    command.write(expected="good morning")
    with command.up("tiny:system"):
        told = command.run("demo", "--json")
    assert told.returncode == 1
    document = json.loads(told.stdout)
    assert document["ok"] is False
    assert [check["ok"] for check in document["checks"]] == [False, True]


def test_a_call_that_is_answered_otherwise_ends_the_story_with_1(command: Command) -> None:
    with command.up("tiny:broken_off"):
        told = command.run("demo", "--json")
    assert told.returncode == 1
    (check,) = json.loads(told.stdout)["checks"]
    assert check["ok"] is False
    assert "/api/nothing answered 404, not 200" in check["detail"]


def test_the_story_is_told_to_a_person(command: Command) -> None:
    with command.up("tiny:system"):
        told = command.run("demo")
    assert told.returncode == 0
    for piece in (
        "A greeting",
        "200 Somebody says hello",
        "✓ It is answered",
        "alpha GET /hello",
        "All as it should be.",
    ):
        assert piece in told.stdout
    assert "\x1b" not in told.stdout, "colours are for terminals"


def test_without_a_running_system_the_demo_says_how_to_start_one(command: Command) -> None:
    told = command.run("demo", "--json")
    assert told.returncode == 1
    assert json.loads(told.stdout)["ok"] is False
    assert told.stderr == (
        "microkit: No system runs in the folder .microkit: start one with `microkit up`, in another terminal\n"
    )
