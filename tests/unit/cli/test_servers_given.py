"""Which servers ``microkit up`` uses, by its options."""

from __future__ import annotations

import os

import pytest

from microkit.cli.servers_given import bus_wanted
from microkit.errors import ConfigurationError
from tests.unit.cli.command import Command

FULL = os.environ.get("MICROKIT_FAULTS") == "full"
REDIS, KAFKA = "redis://bus:6379/0", "kafka://bus:9092"


@pytest.mark.parametrize(
    ("kind", "redis_url", "kafka", "real", "found"),
    [
        (None, None, None, False, "memory://"),
        ("memory", None, None, False, "memory://"),
        ("memory://?faults=lost", None, None, False, "memory://?faults=lost"),
        (None, None, None, True, "redis"),
        ("kafka", None, None, True, "kafka"),
        (None, REDIS, None, False, REDIS),
        ("redis", REDIS, None, True, REDIS),
        (None, None, KAFKA, True, KAFKA),
        (None, None, "bus:9092", True, KAFKA),
    ],
)
def test_options_name_one_bus(
    kind: str | None, redis_url: str | None, kafka: str | None, real: bool, found: str
) -> None:
    assert bus_wanted(kind, redis_url, kafka, real=real) == found


@pytest.mark.parametrize(
    ("kind", "redis_url", "kafka", "real", "told"),
    [
        (None, REDIS, KAFKA, True, "--redis-url and --kafka name two buses"),
        ("kafka", REDIS, None, True, "--redis-url is a server for --bus redis, and --bus says kafka"),
        ("memory", None, None, True, "--bus memory is within one process"),
        ("kafka", None, None, False, "name a server of yours with --kafka kafka://localhost:9092"),
        ("rabbit", None, None, True, "'rabbit' is no kind of bus: memory, redis or kafka"),
        ("redis://u:hunter22@h", None, None, True, "a server of yours is named with --redis-url"),
        (None, "http://h", None, True, "--redis-url: http:// is not what it takes; an example: redis://localhost"),
        (None, "h:6379", None, True, "--redis-url: no URL is not what it takes"),
        (None, None, "redis://h", True, "--kafka: redis:// is not what it takes; an example: kafka://localhost:9092"),
    ],
)
def test_options_that_do_not_go_together_are_one_sentence(
    kind: str | None, redis_url: str | None, kafka: str | None, real: bool, told: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        bus_wanted(kind, redis_url, kafka, real=real)
    assert told in str(caught.value)
    assert "hunter22" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--redis-url", "redis://:hunter22@127.0.0.1:1/0"], "The bus redis://:***@127.0.0.1:1/0 cannot be reached"),
        *([(["--kafka", "127.0.0.1:1"], "The bus kafka://127.0.0.1:1 cannot be reached")] if FULL else []),
        (["--database-url", "postgresql://ada:hunter22@127.0.0.1:1"], "127.0.0.1:1"),
    ],
)
@pytest.mark.parametrize("real", [False, True] if FULL else [True])
def test_a_server_that_is_not_there_is_one_sentence(
    command: Command, options: list[str], told: str, real: bool
) -> None:
    given = ["--console-port", str(command.ports[2]), *options, *(["--real"] if real else [])]
    keeping = f"""
from sqlalchemy import MetaData
from microkit import Service, System
system = System("keeping", services=[Service("alpha", port={command.ports[1]}, tables=MetaData())])
"""
    (command.folder / "keeping.py").write_text(keeping)
    failed = command.run("up", "keeping:system", *given)
    assert failed.returncode == 1
    last = failed.stderr.splitlines()[-1]
    assert last.startswith("microkit: ")
    assert told in last
    assert "hunter22" not in failed.stderr + failed.stdout
    assert len(failed.stderr.splitlines()) == 1, failed.stderr
