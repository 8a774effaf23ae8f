"""A proxy that says something else than the server behind it: the same number of bytes in the place of others."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress


@contextmanager
def rewriting(server: str | int, told: Mapping[bytes, bytes]) -> Iterator[int]:
    """Listens on a port, and passes everything on to ``server``, the path of a socket or a port; what it answers has
    the keys of ``told`` replaced by their values."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=_accept, args=[listening, server, told], daemon=True).start()
        yield listening.getsockname()[1]
        with suppress(OSError):
            listening.shutdown(socket.SHUT_RDWR)


def _accept(listening: socket.socket, server: str | int, told: Mapping[bytes, bytes]) -> None:
    while True:
        try:
            client, _ = listening.accept()
        except OSError:
            return
        behind = socket.socket(socket.AF_UNIX if isinstance(server, str) else socket.AF_INET)
        behind.connect(server if isinstance(server, str) else ("127.0.0.1", server))
        threading.Thread(target=_pass, args=[client, behind, {}], daemon=True).start()
        threading.Thread(target=_pass, args=[behind, client, told], daemon=True).start()


def _pass(one: socket.socket, other: socket.socket, told: Mapping[bytes, bytes]) -> None:
    with suppress(OSError):
        while data := one.recv(65536):
            for true, said in told.items():
                data = data.replace(true, said)
            other.sendall(data)
    for each in (one, other):
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
    one.close()
