"""The URL of a Redis bus, a server that is not there, a client that is not installed."""

from __future__ import annotations

import importlib
import sys

import pytest

from microkit.bus import connect
from microkit.bus.redis import RedisOptions
from microkit.errors import ConfigurationError, MissingExtra

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost?partitions=0",
        "redis://localhost?partitions=many",
        "redis://localhost?lease=1ms",
        "redis://localhost?lease=nan",
        "redis://localhost?keep=-1",
        "redis://localhost?unheard_of=1",
        "redis://localhost:port",
    ],
)
async def test_a_url_that_cannot_be_used_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="bus_url"):
        connect(url)


async def test_the_url_says_what_the_options_are() -> None:
    options, rest = RedisOptions.of(
        "rediss://:secret@host:1/2?lease=1m&partitions=3&ssl_cert_reqs=none&prefix=p&keep=7"
    )
    assert options == RedisOptions(partitions=3, lease=60.0, keep=7, prefix="p")
    assert rest == "rediss://:secret@host:1/2?ssl_cert_reqs=none"


async def test_a_server_that_is_not_there_is_said_in_time() -> None:
    bus = connect("redis://127.0.0.1:1")
    with pytest.raises(ConnectionError):
        await bus.start()
    await bus.close()


async def test_a_missing_client_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name == "redis" or name.startswith("microkit.bus.redis")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(MissingExtra, match=r"microkit\[redis\]"):
        importlib.import_module("microkit.bus.redis")
