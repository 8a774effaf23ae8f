"""The service template: what it makes passes its own checks, and what it cannot make it refuses in a sentence."""

from __future__ import annotations

import ast
import os
import re
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import pytest
from cookiecutter.exceptions import FailedHookException  # type: ignore[import-untyped]  # it has no types
from cookiecutter.main import cookiecutter  # type: ignore[import-untyped]  # it has no types
from packaging.requirements import Requirement

from microkit.servers.ports import free_ports

pytestmark = pytest.mark.xdist_group("the template")  # these tests share a project, and its checks

ROOT = Path(__file__).parent.parent.parent
TEMPLATE = ROOT / "cookiecutter-service"
CHECKS = ["python -m pytest", "ruff check", "ruff format --check", "mypy"]

ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))} | {
    "MYPY_CACHE_DIR": str(ROOT / ".mypy_cache" / "template"),  # the second run need not read all of SQLAlchemy again
    "PYTEST_ADDOPTS": "-v",
    "NO_COLOR": "1",
}


def bake(folder: Path, **answers: str) -> Path:
    """A project in ``folder``, made without asking."""
    config = folder / "cookiecutter.yaml"
    config.write_text(f"replay_dir: {folder}/replay\ncookiecutters_dir: {folder}/templates\n")
    made = cookiecutter(
        str(TEMPLATE), no_input=True, extra_context=answers, output_dir=str(folder), config_file=str(config)
    )
    return Path(made)


def start(project: Path, command: str) -> subprocess.Popen[str]:
    """Starts a command in the project, from the environment of this test.

    Not by a link inside the project: PostgreSQL's programs lie in that environment, and where the tests run as root
    another user runs them, who cannot look into pytest's folders.
    """
    return subprocess.Popen(
        ["bash", "-c", f"exec {sys.prefix}/bin/{command}"],
        cwd=project,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(project: Path, command: str) -> tuple[int, str]:
    """Runs a command as :func:`start` does: its exit code, and what it printed."""
    return ended(start(project, command))


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    printed, _ = process.communicate(timeout=240)
    return process.returncode, printed


def two_free_ports() -> int:
    """A free port whose next one is free too."""
    while True:
        (port,) = free_ports(1)
        with socket.socket() as next_one, suppress(OSError):
            next_one.bind(("127.0.0.1", port + 1))
            return port


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose names have all the forms that a name can take."""
    answers = {"service_name": "spare-parts", "resource": "spare_part", "description": "Parts, and what they're worth."}
    return bake(tmp_path_factory.mktemp("baked"), **answers, port=str(two_free_ports()))


@pytest.fixture(scope="module")
def checking(project: Path) -> Iterator[Mapping[str, subprocess.Popen[str]]]:
    """All checks of the project, running beside each other."""
    running = {check: start(project, check) for check in CHECKS}
    yield running
    for process in running.values():
        process.kill()
        process.communicate()


def shell_blocks(project: Path) -> list[str]:
    return re.findall(r"```sh\n(.*?)```", (project / "README.md").read_text(encoding="utf-8"), re.DOTALL)


def test_the_readme_names_the_checks_that_follow(project: Path) -> None:
    assert shell_blocks(project)[1].strip() == " && ".join(f".venv/bin/{check}" for check in CHECKS)


@pytest.mark.parametrize("check", CHECKS[1:])
def test_what_is_made_passes_its_own(check: str, checking: Mapping[str, subprocess.Popen[str]]) -> None:
    code, printed = ended(checking[check])

    assert code == 0, printed


def test_what_is_made_passes_its_own_tests_on_both_databases(checking: Mapping[str, subprocess.Popen[str]]) -> None:
    code, printed = ended(checking[CHECKS[0]])

    assert code == 0, printed
    for database in ("sqlite", "postgresql"):
        assert f"test_a_rating_counts_once_however_often_it_is_delivered[{database}] PASSED" in printed
    assert set(re.findall(r"\d+ (passed|failed|skipped|xfailed|error)", printed)) == {"passed"}


def test_its_tests_notice_a_column_without_a_migration(tmp_path: Path) -> None:
    project = bake(tmp_path)
    tables = project / "catalog" / "tables.py"
    tables.write_text(tables.read_text(encoding="utf-8") + "    colour: Mapped[str] = mapped_column(String(20))\n")

    code, printed = run(project, "python -m pytest -k 'test_migrating_makes and sqlite'")

    assert code == 1
    assert "colour" in printed


def test_it_runs_as_its_readme_says(project: Path) -> None:
    up, _, by_hand, *_ = shell_blocks(project)
    command = up.strip().rpartition(" && ")[2].replace(".venv/", f"{sys.prefix}/")
    log = project / "up.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command.split(), "--console-port", "0"], cwd=project, env=ENVIRONMENT, stdout=output, stderr=output
        )
    try:
        until = time.monotonic() + 60
        while "ready in" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.05)
        said = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", by_hand], capture_output=True, text=True, timeout=60, check=False
        )
        assert said.returncode == 0, said.stderr + log.read_text()
        added, listed = said.stdout.splitlines()
        assert '"name":"Lamp","added_by":"ada"' in added
        assert added in listed
    finally:
        process.send_signal(signal.SIGINT)
        code = process.wait(30)
    assert code == 0, log.read_text()


def test_it_asks_for_the_microkit_that_the_template_is_part_of(project: Path) -> None:
    described = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [Requirement(text) for text in described["dependencies"] + described["optional-dependencies"]["dev"]]
    extras = {extra for one in wanted if one.name == "microkit" for extra in one.extras}
    offered = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]

    # By its URL: the bare name is another project's on the public index.
    assert {one.url for one in wanted if one.name == "microkit"} == {ROOT.as_uri()}
    assert extras == {"lint", "postgres", "testing"}
    assert extras <= offered.keys()
    assert described["description"] == "Parts, and what they're worth."


def test_its_contracts_hold_no_behaviour(project: Path) -> None:
    tree = ast.parse((project / "spare_parts" / "contracts.py").read_text(encoding="utf-8"))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}

    assert imported == {"__future__", "datetime", "typing", "uuid", "microkit", "pydantic"}


@pytest.mark.parametrize(
    "answers",
    [
        {},
        {"service_name": "z", "resource": "q"},
        {
            "service_name": "a-name-of-24-letters-max",
            "resource": "eighteen_letters_x",
            "resource_plural": "eighteen_letters_y",
            "port": "65534",
            "microkit_source": "file:///srv/microkit",
        },
        {"service_name": "assay", "resource": "test_result"},
    ],
    ids=["defaults", "shortest", "longest", "names that pytest looks for"],
)
def test_names_of_any_length_leave_the_code_as_the_formatter_wants_it(
    answers: Mapping[str, str], tmp_path: Path
) -> None:
    project = bake(tmp_path, **answers)

    for check in ("ruff check", "ruff format --check"):
        code, printed = run(project, check)
        assert code == 0, printed
    assert "{{" not in "".join(path.read_text() for path in project.rglob("*.*") if path.suffix in {".py", ".toml"})


@pytest.mark.parametrize(
    ("answers", "sentence"),
    [
        ({"service_name": ""}, "service_name '' must be lower-case words joined by dashes"),
        ({"service_name": "Catalog"}, "service_name 'Catalog' must be lower-case words"),
        ({"service_name": "price_list"}, "like catalog or price-list"),
        ({"service_name": "../catalog"}, "service_name '../catalog' must be"),
        ({"service_name": "catalog\n"}, r"service_name 'catalog\n' must be"),
        ({"service_name": 'it\'s "mine"'}, "must be lower-case words"),
        ({"service_name": "a-name-that-is-longer-than-it-may-be"}, "24 characters at most"),
        ({"service_name": "json"}, "service_name 'json' is the name of something"),
        ({"service_name": "class"}, "service_name 'class' is the name of something"),
        ({"service_name": "microkit"}, "service_name 'microkit' is the name of something"),
        ({"service_name": "dev-issuer"}, "service_name 'dev-issuer' is the name of something"),
        ({"resource": "Product"}, "resource 'Product' must be lower-case words joined by underscores"),
        ({"resource": "price-list"}, "like product or price_list"),
        ({"resource": "event"}, "resource 'event' would make a second class Event"),
        ({"resource_plural": "not_found"}, "resource_plural 'not_found' would make a second class NotFound"),
        ({"resource": "sheep", "resource_plural": "sheep"}, "must differ from resource"),
        ({"resource": "doc"}, "would take the path /docs"),
        ({"resource_plural": "product_row"}, "would make a second class ProductRow"),
        ({"port": "http"}, "port 'http' must be a number from 1024 to 65534"),
        ({"port": "80"}, "port '80' must be a number"),
        ({"port": "65535"}, "port '65535' must be a number"),
        ({"port": "3899"}, "collides with the console"),
        ({"description": 'It is "ours"'}, "description must be one line"),
        ({"microkit_source": "../microkit"}, "microkit_source '../microkit' must be a URL"),
        ({"microkit_source": "microkit"}, "microkit_source 'microkit' must be a URL"),
    ],
    ids=str,
)
def test_an_answer_that_cannot_be_is_refused_in_one_sentence_and_nothing_is_left(
    answers: Mapping[str, str], sentence: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(FailedHookException):
        bake(tmp_path, **answers)

    (said,) = capfd.readouterr().err.splitlines()
    assert sentence in said
    assert said.endswith(".")
    assert [path.name for path in tmp_path.iterdir() if path.name not in {"cookiecutter.yaml", "replay"}] == []
