"""``redis://`` and ``rediss://``: Redis and Valkey Streams. To import this without redis-py raises ``MissingExtra``."""

from __future__ import annotations

from importlib import import_module

from microkit.errors import MissingExtra

try:
    import_module("redis")
except ImportError as error:
    if error.name == "redis":
        raise MissingExtra("redis://", "redis") from error
    raise

from microkit.bus.redis.bus import MessageRefused, RedisBus
from microkit.bus.redis.options import RedisOptions

__all__ = ["MessageRefused", "RedisBus", "RedisOptions"]
