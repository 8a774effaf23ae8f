"""A service whose consumers crash again and again: its process ends, and says so."""

from __future__ import annotations

import json

from tests.unit.cli.command import Command

MODULE = """
from microkit import Event, Service, System
from microkit.bus.memory import MemoryBus

class Said(Event, topic="talk.said", key="who"):
    who: str

alpha = Service("alpha", port={port})

@alpha.on(Said)
async def hear(event: Said) -> None: ...

real = MemoryBus.subscribe

async def subscribe(self, group, topics):
    consumer = await real(self, group, topics)

    async def fetch(most, wait):
        raise TypeError("a fault in the adapter")

    consumer.fetch = fetch
    return consumer

MemoryBus.subscribe = subscribe
system = System("faulty", services=[alpha])
"""


def test_a_process_whose_consumers_crash_too_often_ends_with_an_error(command: Command) -> None:
    (command.folder / "faulty.py").write_text(MODULE.format(port=command.ports[1]))
    with command.up("faulty:system") as (process, _):
        assert process.process.wait(60) == 1
    last = process.errors[-1]
    assert last.startswith("microkit: alpha cannot go on: the group alpha.hear crashed too often")
    assert "a fault in the adapter" in last
    crashes = [json.loads(line) for line in process.errors if "crashed" in line and line.startswith("{")]
    assert sum(line["message"].startswith("group alpha.hear crashed") for line in crashes) == 6
