"""``microkit run``: one service as a process of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.error import URLError

import pytest

from tests.unit.cli.command import Command


@contextmanager
def running(command: Command, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "microkit.cli", "run", *arguments],
        cwd=command.folder,
        env={**os.environ, "ALPHA_SHUTDOWN_TIMEOUT": "5s"},
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def until_answered(url: str) -> bytes:
    until = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(url, timeout=10) as response:
                body: bytes = response.read()
                return body
        except URLError:
            assert time.monotonic() < until
            time.sleep(0.05)


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
def test_a_service_runs_alone_where_its_settings_say_and_ends_in_order(command: Command, by: signal.Signals) -> None:
    url = f"http://127.0.0.1:{command.ports[1]}"
    with running(command, "alpha", "--system", "tiny:system") as process:
        assert json.loads(until_answered(f"{url}/hello")) == {"greeting": "hello"}
        process.send_signal(by)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    lines = [json.loads(line) for line in out.splitlines()]
    told = {line["message"]: line for line in lines}
    assert told["ready"]["url"] == url
    assert told["ready"]["service"] == "alpha"
    assert "stopped" in told


def test_a_service_that_is_not_there_is_named_with_those_that_are(command: Command) -> None:
    ended = command.run("run", "omega", "--system", "tiny:system")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == "microkit: tiny has no service 'omega'; it has: gateway, alpha\n"


def test_a_service_that_cannot_start_says_why_and_exits_with_an_error(command: Command) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", command.ports[1]))
        taken.listen()
        ended = command.run("run", "alpha", "--system", "tiny:system")
    assert ended.returncode == 1
    assert str(command.ports[1]) in ended.stderr
    assert "Traceback" not in ended.stderr
