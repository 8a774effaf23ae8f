"""Finding the system that a command is about."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from microkit.cli.load import find_service, load_system
from microkit.errors import ConfigurationError

SOURCE = """
from microkit import Service, System

alpha = Service("alpha")
system = System("tiny", services=[alpha])
number = 7
"""


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "deep").mkdir()
    (tmp_path / "tiny_of_test.py").write_text(SOURCE)
    (tmp_path / "broken_of_test.py").write_text("import a_package_nobody_has")
    monkeypatch.chdir(tmp_path / "deep")
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in ("tiny_of_test", "broken_of_test"):
        sys.modules.pop(name, None)


def test_the_default_comes_from_the_nearest_pyproject(project: Path) -> None:
    (project / "pyproject.toml").write_text('[tool.microkit]\nsystem = "tiny_of_test:system"\n')
    reference, system = load_system(None)
    assert (reference, system.name) == ("tiny_of_test:system", "tiny")
    assert find_service(system, "alpha").name == "alpha"


def test_a_named_system_wins(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    assert load_system("tiny_of_test:system")[1].name == "tiny"


@pytest.mark.parametrize(
    ("reference", "sentence"),
    [
        (None, "Which system?"),
        ("tiny_of_test", "write module:variable"),
        (":system", "write module:variable"),
        ("nowhere_of_test:system", "There is no module 'nowhere_of_test'"),
        ("nowhere_of_test.deep:system", "There is no module 'nowhere_of_test.deep'"),
        ("tiny_of_test:nothing", "'nothing' is not there"),
        ("tiny_of_test:number", "'number' is a int"),
        ("broken_of_test:system", "needs the module 'a_package_nobody_has', which is not installed"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    reference: str | None, sentence: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    with pytest.raises(ConfigurationError, match=sentence.replace("?", r"\?")):
        load_system(reference)


def test_an_unreadable_pyproject_is_named(project: Path) -> None:
    (project / "pyproject.toml").write_text("[tool")
    with pytest.raises(ConfigurationError, match=r"pyproject\.toml cannot be read"):
        load_system(None)


def test_a_service_that_is_not_there_is_named_with_those_that_are(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    _, system = load_system("tiny_of_test:system")
    with pytest.raises(ConfigurationError, match="tiny has no service 'beta'; it has: alpha"):
        find_service(system, "beta")
