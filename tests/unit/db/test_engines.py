from __future__ import annotations

import importlib.abc
import subprocess
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest

import microkit.db
from microkit.db.engines import Limits, make
from microkit.errors import ConfigurationError, MissingExtra

LIMITS = Limits(5, 30.0, 5.0)


@pytest.mark.parametrize(
    ("url", "dialect"),
    [
        ("sqlite:///x.db", "sqlite"),
        ("sqlite+aiosqlite:///x.db", "sqlite"),
        ("postgres://u:p@h/d", "postgresql"),
        ("postgresql://u:p@h/d", "postgresql"),
        ("postgresql+asyncpg://u:p@h/d", "postgresql"),
    ],
)
def test_a_url_names_its_database(url: str, dialect: str) -> None:
    made = make(url, LIMITS, application="test")
    assert made.dialect == dialect
    assert made.where.endswith("x.db" if dialect == "sqlite" else "u:***@h/d")


@pytest.mark.parametrize(
    "url", ["", "billing.db", "mysql://h/d", "postgresql+psycopg2://u:S3cret@h/d", "sqlite:/", "://"]
)
def test_a_url_that_names_none_is_refused_with_an_example_and_without_its_password(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"sqlite\+aiosqlite:///") as caught:
        make(url, LIMITS, application="test")
    assert "S3cret" not in str(caught.value)


def test_where_a_database_is_says_no_password() -> None:
    for url in ("postgresql://u:s3cret@h/d", "postgresql://h/d?user=u&password=s3cret"):
        where = make(url, LIMITS, application="test").where
        assert where.startswith("postgresql+asyncpg://")
        assert "s3cret" not in where


class Without(importlib.abc.MetaPathFinder):
    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name.partition(".")[0] == self.package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=self.package)
        return None


@pytest.mark.parametrize(("package", "raised"), [("asyncpg", MissingExtra), ("orjson", ModuleNotFoundError)])
def test_a_missing_driver_names_the_extra_and_another_missing_package_passes_through(
    package: str, raised: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] == package or name in ("microkit.db.postgresql", "microkit.db.jsontext"):
            monkeypatch.delitem(sys.modules, name)
    for name in ("postgresql", "jsontext"):
        monkeypatch.delattr(microkit.db, name, raising=False)
    monkeypatch.setattr(sys, "meta_path", [Without(package), *sys.meta_path])
    with pytest.raises(raised) as caught:
        make("postgresql://u@h/d", LIMITS, application="test")
    if raised is MissingExtra:
        assert "microkit[postgres]" in str(caught.value)


def test_the_package_loads_no_driver_and_no_alembic() -> None:
    script = (
        "import sys, microkit.db, microkit.db.migration\n"
        "print([name for name in ('asyncpg', 'aiosqlite', 'alembic') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
