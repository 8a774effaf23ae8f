"""Which servers `microkit up` uses: its own, or those that it was given."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final

from microkit.bus.connect import connect, started
from microkit.errors import ConfigurationError

_SCHEMES: Final[Mapping[str, tuple[str, ...]]] = {"redis": ("redis", "rediss"), "kafka": ("kafka", "kafka+ssl")}
_OPTIONS: Final[Mapping[str, str]] = {"redis": "--redis-url", "kafka": "--kafka"}
_EXAMPLES: Final[Mapping[str, str]] = {"redis": "redis://localhost:6379/0", "kafka": "kafka://localhost:9092"}

MEMORY: Final = "memory://"


def bus_wanted(kind: str | None, redis_url: str | None, kafka: str | None, *, real: bool) -> str:
    """The bus of the services: a URL, or ``redis`` or ``kafka`` for a server that is to be started.

    Raises:
        ConfigurationError: the options do not go together; the sentence says what would.
    """
    given = {"redis": redis_url, "kafka": f"kafka://{kafka}" if kafka and "://" not in kafka else kafka}
    named = [name for name, url in given.items() if url is not None]
    if len(named) == 2:
        raise ConfigurationError("--redis-url and --kafka name two buses, and the services share one: leave one out")
    if kind is not None and kind.startswith(MEMORY):
        kind, memory = "memory", kind
    else:
        memory = MEMORY
    if kind is not None and kind not in ("memory", *_SCHEMES):
        raise ConfigurationError(_no_kind(kind))
    if named and kind not in (None, named[0]):
        raise ConfigurationError(
            f"{_OPTIONS[named[0]]} is a server for --bus {named[0]}, and --bus says {kind}: leave one of them out"
        )
    if named:
        return _of_kind(named[0], given[named[0]] or "")
    kind = kind or ("redis" if real else "memory")
    if kind == "memory":
        if real:
            raise ConfigurationError("--bus memory is within one process, and --real starts many: say redis or kafka")
        return memory
    if not real:
        raise ConfigurationError(
            f"--bus {kind} starts a server with --real only: add that, or name a server of yours with "
            f"{_OPTIONS[kind]} {_EXAMPLES[kind]}"
        )
    return kind


async def check_bus(url: str) -> None:
    """That the server at ``url`` is there, before anything is started on it.

    Raises:
        ConfigurationError: it cannot be reached, or does not let us in.
    """
    bus = connect(url)
    logging.disable()  # a Kafka client logs each of its attempts, and one sentence says it all
    try:
        await started(bus, url)
    finally:
        await bus.close()
        logging.disable(logging.NOTSET)


def _of_kind(kind: str, url: str) -> str:
    scheme = url.partition("://")[0]
    if scheme not in _SCHEMES[kind]:
        shown = f"{scheme[:20]}://" if "://" in url else "no URL"
        raise ConfigurationError(f"{_OPTIONS[kind]}: {shown} is not what it takes; an example: {_EXAMPLES[kind]}")
    return url


def _no_kind(kind: str) -> str:
    """Without the rest of a URL, which may hold a password."""
    scheme = kind.partition("://")[0]
    of = next((name for name, schemes in _SCHEMES.items() if "://" in kind and scheme in schemes), None)
    if of is not None:
        return f"--bus names a kind: memory, redis or kafka; a server of yours is named with {_OPTIONS[of]}"
    return f"--bus {scheme[:40]!r} is no kind of bus: memory, redis or kafka"
