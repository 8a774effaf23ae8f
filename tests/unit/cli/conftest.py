"""The command, for every test of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from microkit.servers.ports import free_ports
from tests.unit.cli.command import Command


@pytest.fixture
def command(tmp_path: Path) -> Command:
    made = Command(tmp_path, free_ports(3))
    made.write()
    return made
