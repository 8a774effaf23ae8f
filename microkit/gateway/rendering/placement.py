"""Where the rendered proxy stands."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from microkit.errors import ConfigurationError

_LISTEN: Final = re.compile(r"(?:(?:\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+|\*):)?[0-9]{1,5}")
_PATH: Final = re.compile(r"/[A-Za-z0-9/._-]*")
_RESOLVER: Final = re.compile(r"[A-Za-z0-9.:\[\]-]+")


@dataclass(frozen=True, slots=True)
class Placement:
    """``listen`` is a port, or an address and a port. ``folder`` is an absolute path for the pid file and for bodies on
    their way. ``resolver`` is a name server: with one, names of services are looked up again while the proxy runs.
    ``access_log`` is a file, or ``off``.

    Raises:
        ConfigurationError: one of them is none.
    """

    listen: str = "8080"
    folder: Path = Path("/var/cache/nginx")
    resolver: str = ""
    access_log: str = "/dev/stdout"

    def __post_init__(self) -> None:
        if not _LISTEN.fullmatch(self.listen):
            raise ConfigurationError(f"--listen {self.listen!r} is no address; write 8080 or 127.0.0.1:8080")
        for name, value in (("--folder", str(self.folder)), ("--access-log", self.access_log)):
            if value != "off" and not _PATH.fullmatch(value):
                raise ConfigurationError(f"{name} {value!r} is no absolute path; write /var/cache/nginx")
        if self.resolver and not _RESOLVER.fullmatch(self.resolver):
            raise ConfigurationError(f"--resolver {self.resolver!r} is no name server; write 10.0.0.2 or 127.0.0.11:53")
