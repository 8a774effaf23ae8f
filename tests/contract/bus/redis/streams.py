"""What the tests of the Redis adapter look up on the server."""

from __future__ import annotations

from microkit.bus.redis import RedisBus

GROUP = "shop"


def stream_of(bus: RedisBus, topic: str) -> str:
    return bus._server.stream(topic, 0)
