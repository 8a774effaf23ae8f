"""The README's walk-through is pasted, as it stands, beside the system that the README's command starts.

So on files of SQLite, as the README has it, and on a PostgreSQL server, as ``docs/databases.md`` has it.
"""

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


pytestmark = pytest.mark.xdist_group("the ports of the README")


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def billpay(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What the run command ends in, in a folder of the test's own; both tests are told beside one run of it."""
    folder = tmp_path_factory.mktemp("billpay")
    last = pasted("run command").strip().split(" && ")[-1].split()
    assert last[0].endswith("/microkit")
    options = ["--json", "--console-port", "0", "--folder", str(folder)]
    cluster = request.getfixturevalue("postgres_cluster") if request.param == "postgresql" else None
    if cluster is not None:
        options += ["--database-url", cluster.url("")]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "microkit.cli", *last[1:], *options],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    assert process.stdout is not None
    announced = process.stdout.readline()
    assert announced, (folder / "log").read_text()
    document = json.loads(announced)
    assert "services" in document, document
    assert {service["name"] for service in document["services"]} >= {"gateway", "user", "billing"}
    yield folder
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    process.stdout.close()
    if cluster is None:
        assert {file.stem for file in folder.glob("*.db")} == {"user", "payment", "billing", "ledger"}
    else:
        assert not list(folder.glob("*.db"))
        for name in DATABASES:
            assert cluster.psql("SELECT count(*) FROM outbox", name).isdigit()
            cluster.psql(f'DROP DATABASE "{name}"')


DATABASES = ("billpay_user", "billpay_payment", "billpay_billing", "billpay_ledger")


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


def test_the_demo_tells_the_whole_story_beside_it(billpay: Path) -> None:
    demo = [sys.executable, "-m", "microkit.cli", "demo", "--json", "--folder", str(billpay)]

    ended = subprocess.run(demo, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert json.loads(ended.stdout)["ok"] is True


def test_the_test_command_and_the_run_command_install_from_pinned_files() -> None:
    assert "requirements/run.txt" in pasted("run command")
    assert pasted("test command").strip().endswith("nox -s tests")
