"""Sagas whose database ends every connection, again and again, in the middle of whatever it does."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from microkit.db import Database
from microkit.saga import StepRefused
from microkit.telemetry import Telemetry
from tests.contract.saga.trips import Bench

pytestmark = pytest.mark.anyio


async def test_every_saga_ends_with_each_local_effect_once(postgres_cluster: Any, postgres_url: str) -> None:
    database = Database(postgres_url, telemetry=Telemetry("trips"))
    bench = Bench(database)
    await bench.prepare()
    trip = bench.trip(patient=True)

    async def pause() -> None:
        await asyncio.sleep(0.01)

    bench.scripts = {"room": [pause] * 60, "pay": [StepRefused("no")] * 20}
    name = postgres_url.split("@/")[1].split("?", maxsplit=1)[0]
    terminate = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"

    async with (
        bench.engine(trip, lease=0.5, concurrency=4) as first,
        bench.engine(trip, lease=0.5, concurrency=4) as second,
    ):
        ids = [await bench.begin(trip) for _ in range(60)]
        for _ in range(15):
            await asyncio.sleep(0.05)
            await asyncio.to_thread(postgres_cluster.psql, terminate)
        async with asyncio.timeout(60):
            stories = [await bench.until_rest(saga_id) for saga_id in ids]
            while not (first.health().ok and second.health().ok):
                await asyncio.sleep(0.01)

    for story in stories:
        expected = ["seat", "tell"] if story.status == "completed" else ["seat", "free_seat"]
        assert await bench.effects(story.id) == expected
    # A refusal whose record was lost is asked for again, and the script then has another answer.
    assert {str(story.status) for story in stories} == {"completed", "compensated"}
    await database.close()
