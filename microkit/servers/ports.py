"""Ports for servers that have to be told one before they start."""

from __future__ import annotations

import random
import socket
from contextlib import suppress
from typing import Final

from microkit.errors import MicrokitError

_QUIET_PORTS: Final = range(15_000, 32_000)


def free_ports(count: int) -> list[int]:
    """``count`` different ports of this machine that nobody listens on, for tests.

    They lie below those that a system gives to outgoing connections and to servers that ask for any port, so nothing
    takes them before they are used.
    """
    found: list[int] = []
    for port in random.sample(_QUIET_PORTS, 1000) if count else ():
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            break
    if len(found) == count:
        return found
    raise MicrokitError(f"There are no {count} free ports")
