"""From outbox to inbox, while producer, relays, consumers, connections and broker are killed at random."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.programs import run

FULL = os.environ.get("MICROKIT_FAULTS") == "full"
BLOWS = 120 if FULL else 7


@pytest.fixture
def second_database_url(database_url: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """Another empty database of the same kind."""
    if database_url.startswith("sqlite"):
        yield f"sqlite+aiosqlite:///{tmp_path / 'second.db'}"
        return
    cluster = request.getfixturevalue("postgres_cluster")
    name = cluster.create()
    yield cluster.url(name)
    cluster.drop(name)


@pytest.mark.timeout(1500 if FULL else 240)
@pytest.mark.parametrize("bus", ["memory", "redis", "kafka"])
def test_what_was_committed_is_what_has_its_effect_once_and_in_order(
    bus: str, database_url: str, second_database_url: str, tmp_path: Path, record_property: Any
) -> None:
    if not FULL and (bus, database_url.partition("+")[0]) in {("memory", "postgresql"), ("redis", "sqlite")}:
        pytest.skip("a pair of the full form: each bus and each database stands in another one")
    events = 2_000
    if FULL:
        events = 20_000 if database_url.startswith("sqlite") else 100_000
    seed = int(os.environ.get("MICROKIT_SEED") or random.randrange(2**32))
    plan: dict[str, Any] = {
        "source": database_url,
        "target": second_database_url,
        "bus": bus,
        "events": events,
        "blows": BLOWS,
        "seconds": 0.5,
        "seed": seed,
        "folder": str(tmp_path),
    }
    done = run("events.copying", json.dumps(plan))
    blows = (tmp_path / "blows").read_text()
    assert done.returncode == 0, f"MICROKIT_SEED={seed}\n{blows}\n{done.stderr[-6000:]}"
    told = json.loads(done.stdout)
    record_property("copied", {"seed": seed, **told})
    assert told["events"] >= events
    assert told["effects"] == [told["events"]] * 2
    assert sum(told["kills"].values()) == BLOWS
