"""What every test of the repository starts from."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from _pytest.nodeid import NodeId  # there is no public way to it

SECOND_CHANCES = 3
"""How many tests of one run may be tried again, where ``--reruns`` is given."""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def postgres_role_url(postgres_cluster: Any) -> Iterator[str]:
    """The URL of an empty database for a user whose password the server wants to see."""
    rules = Path(postgres_cluster.psql("SHOW hba_file"))
    before = rules.read_text()
    name = postgres_cluster.create()
    postgres_cluster.psql("CREATE ROLE guarded LOGIN PASSWORD 'the right password'")
    rules.write_text("local all guarded scram-sha-256\n" + before)
    postgres_cluster.psql("SELECT pg_reload_conf()")
    yield str(postgres_cluster.url(name)).replace("://postgres@", "://guarded:the%20right%20password@")
    rules.write_text(before)
    postgres_cluster.psql("SELECT pg_reload_conf()")
    postgres_cluster.psql("DROP ROLE guarded")
    postgres_cluster.drop(name)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keeps the tests of a group in one worker: pytest-xdist 3.8 writes the group where pytest 9.2 does not read it."""
    if not getattr(config.option, "loadgroup", False):
        return
    for item in items:
        groups = sorted({mark.args[0] for mark in item.iter_markers("xdist_group")})
        suffix = f"@{'_'.join(groups)}"
        if groups and not item.nodeid.endswith(suffix):
            item._id = NodeId.parse(item.nodeid + suffix)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """More than a few tests that passed only when they were tried again are a failure: see decision 40."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or len(reporter.stats.get("rerun", ())) <= SECOND_CHANCES:
        return
    reporter.section("more tests than chance explains passed only when they were tried again", red=True)
    session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """A worker of pytest-xdist cannot send half characters, which some tests put into logs on purpose."""
    return _sendable((yield))


def _sendable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_sendable(key): _sendable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_sendable(item) for item in value)
    return value
