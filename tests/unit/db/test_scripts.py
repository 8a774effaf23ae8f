from __future__ import annotations

from pathlib import Path

import pytest

from microkit.db.scripts import Scripts
from microkit.errors import ConfigurationError


def scripts(folder: Path, **parents: str) -> Scripts:
    (folder / "versions").mkdir()
    for revision, down in parents.items():
        (folder / "versions" / f"{revision}.py").write_text(f"revision: str = {revision!r}\ndown_revision = {down}\n")
    return Scripts(folder, "schema_version", "billing")


def test_what_is_missing_comes_oldest_first(tmp_path: Path) -> None:
    found = scripts(tmp_path, c="None", b="'c'", a="'b'")
    assert found.missing(set()) == ["c", "b", "a"]
    assert found.missing({"c"}) == ["b", "a"]
    assert found.missing({"a"}) == []
    assert found.heads == {"a"}


def test_branches_and_merges_are_followed(tmp_path: Path) -> None:
    found = scripts(tmp_path, a="None", left="'a'", right="'a'", end="('left', 'right')")
    assert found.heads == {"end"}
    assert found.missing({"left"}) == ["right", "end"]
    assert found.reached({"left", "right"}) == {"a", "left", "right"}


def test_a_revision_of_a_newer_program_hides_nothing_to_do(tmp_path: Path) -> None:
    assert scripts(tmp_path, a="None", b="'a'").missing({"z"}) == []


def test_a_script_whose_parent_is_gone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"billing do not follow from each other: \['b'\]"):
        scripts(tmp_path, a="None", b="'gone'").missing(set())


def test_files_that_begin_with_an_underscore_are_no_scripts(tmp_path: Path) -> None:
    found = scripts(tmp_path, a="None")
    (tmp_path / "versions" / "__init__.py").write_text("x = 1")
    assert found.heads == {"a"}
