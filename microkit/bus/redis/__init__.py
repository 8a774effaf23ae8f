"""``redis://`` and ``rediss://``: Redis and Valkey Streams."""

from microkit.bus.redis.bus import RedisBus
from microkit.bus.redis.options import RedisOptions

__all__ = ["RedisBus", "RedisOptions"]
