"""A connection that is cut while its thread is busy."""

from __future__ import annotations

import asyncio
import threading

import aiosqlite
import pytest

from microkit.db.sqlite import cut


def test_a_connection_that_is_cut_closes_even_if_its_loop_ends_first(monkeypatch: pytest.MonkeyPatch) -> None:
    complaints: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", complaints.append)
    loop_has_ended = threading.Event()

    async def leave() -> aiosqlite.Connection:
        connection = await aiosqlite.connect(":memory:")
        connection._tx.put_nowait((None, loop_has_ended.wait))  # the statement it is busy with
        cut(connection)
        return connection

    connection = asyncio.run(leave())
    loop_has_ended.set()
    connection._thread.join(10)

    assert not connection._thread.is_alive()
    assert complaints == []
    assert connection._connection is None
