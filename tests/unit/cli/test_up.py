"""``microkit up`` as a person meets it."""

from __future__ import annotations

import json
import signal
import socket
import urllib.request

import pytest

from tests.unit.cli.command import Command


def free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def test_up_prints_one_document_and_serves_until_it_is_interrupted(command: Command) -> None:
    with command.up("tiny:system", "--seed") as (process, document):
        gateway, alpha, console = command.ports
        assert document["system"] == "tiny"
        assert document["services"] == [
            {"name": "gateway", "url": f"http://127.0.0.1:{gateway}", "state": "ready"},
            {"name": "alpha", "url": f"http://127.0.0.1:{alpha}", "state": "ready"},
        ]
        assert document["console"] == f"http://127.0.0.1:{console}"
        assert document["credentials"] == {"ada@example.com": "correct horse"}
        with urllib.request.urlopen(f"http://127.0.0.1:{gateway}/api/hello") as answer:
            assert json.load(answer) == {"greeting": "hello"}
        assert process.interrupt() == 0
    assert process.lines == []
    lines = [json.loads(line) for line in process.errors]
    assert {"gateway", "alpha"} <= {line.get("service") for line in lines}


def test_sigterm_ends_it_as_cleanly(command: Command) -> None:
    with command.up("tiny:system") as (process, _):
        assert process.interrupt(signal.SIGTERM) == 0
    assert not (command.folder / ".microkit" / "up.json").exists()


def test_a_port_offset_moves_every_service(command: Command) -> None:
    offset = next(offset for offset in range(1, 500) if all(free(port + offset) for port in command.ports))
    with command.up("tiny:system", "--port-offset", str(offset)) as (_, document):
        ports = [int(service["url"].rpartition(":")[2]) for service in document["services"]]
        assert ports == [port + offset for port in command.ports[:2]]


def test_a_second_up_in_the_same_folder_is_refused(command: Command) -> None:
    with command.up("tiny:system"):
        second = command.run("up", "tiny:system", "--port-offset", "7")
    assert second.returncode == 1
    assert second.stderr.startswith("microkit: Another `microkit up` runs in the folder")
    assert second.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("system", "which", "sentence"),
    [("tiny:system", 1, "alpha does not start: "), ("tiny:system", 2, "The console does not start: ")],
)
def test_a_taken_port_is_one_sentence(command: Command, system: str, which: int, sentence: str) -> None:
    port = command.ports[which]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        failed = command.run("up", system, "--console-port", str(command.ports[2]), "--json")
    assert failed.returncode == 1
    assert json.loads(failed.stdout)["ok"] is False
    last = failed.stderr.splitlines()[-1]
    assert last.startswith(f"microkit: {sentence}")
    assert str(port) in last
    assert "Traceback" not in failed.stderr


def test_an_unwritable_folder_is_one_sentence(command: Command) -> None:
    (command.folder / "file").write_text("")
    failed = command.run("up", "tiny:system", "--folder", "file/below")
    assert failed.returncode == 1
    assert failed.stderr == (
        "microkit: The folder file/below cannot be written (Not a directory): choose another with --folder\n"
    )


def test_a_service_that_fails_to_start_is_one_sentence_and_the_others_are_stopped(command: Command) -> None:
    failed = command.run("up", "tiny:failing", "--console-port", str(command.ports[2]))
    assert failed.returncode == 1
    assert failed.stderr == "microkit: unsettled does not start: thing_url is missing; an example: http://thing\n"
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", command.ports[1]))


def test_a_system_without_demo_data_says_so(command: Command) -> None:
    failed = command.run("up", "tiny:bare", "--seed")
    assert (failed.returncode, failed.stderr) == (
        1,
        "microkit: The system bare has no demo data: leave --seed out\n",
    )
