"""The README's walk-through is pasted, as it stands, beside the system that the README's command starts."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def pasted(mark: str) -> str:
    found = re.search(rf"<!-- {mark} -->\n```sh\n(.*?)```", README, re.DOTALL)
    assert found is not None, f"the README has no block marked {mark!r}"
    return found[1]


pytestmark = pytest.mark.xdist_group("the ports of README and tutorial")


@pytest.fixture
def billpay(tmp_path: Path) -> Iterator[None]:
    """What the run command ends in, in a folder of the test's own."""
    last = pasted("run command").strip().split(" && ")[-1].split()
    assert last[0].endswith("/microkit")
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "microkit.cli",
                *last[1:],
                "--json",
                "--console-port",
                "0",
                "--folder",
                str(tmp_path),
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    assert process.stdout is not None
    announced = process.stdout.readline()
    assert announced, (tmp_path / "log").read_text()
    document = json.loads(announced)
    assert "services" in document, document
    assert {service["name"] for service in document["services"]} >= {"gateway", "user", "billing"}
    yield
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    process.stdout.close()


@pytest.mark.usefixtures("billpay")
def test_the_walk_through_works_when_it_is_pasted() -> None:
    commands = pasted("walk-through")

    ended = subprocess.run(
        ["bash", "-c", commands],
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
        env={"PATH": os.environ["PATH"]},
    )

    assert '"status":"settled"' in ended.stdout, ended.stdout + ended.stderr
    assert '"balance":"9974.4999900"' in ended.stdout, ended.stdout


@pytest.mark.usefixtures("billpay")
def test_the_demo_tells_the_whole_story_beside_it(tmp_path: Path) -> None:
    demo = [sys.executable, "-m", "microkit.cli", "demo", "--json", "--folder", str(tmp_path)]

    ended = subprocess.run(demo, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert json.loads(ended.stdout)["ok"] is True


def test_the_test_command_and_the_run_command_install_from_pinned_files() -> None:
    assert "requirements/run.txt" in pasted("run command")
    assert pasted("test command").strip().endswith("nox -s tests")
