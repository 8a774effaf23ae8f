"""What may stand behind the ``?`` of PostgreSQL's URLs, which providers write for libpq."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Final
from urllib.parse import urlencode

from sqlalchemy import URL

from microkit.errors import ConfigurationError

_OF_DSN: Final = frozenset(
    {
        "gsslib", "krbsrvname", "passfile", "ssl_max_protocol_version", "ssl_min_protocol_version", "sslcert", "sslcrl",
        "sslkey", "sslmode", "sslnegotiation", "sslpassword", "sslrootcert", "target_session_attrs",
    }
)  # fmt: skip
"""Those that asyncpg reads in a URL of its own, with libpq's meaning."""

_FILES: Final = frozenset({"passfile", "sslcert", "sslcrl", "sslkey", "sslrootcert"})

_OF_SQLALCHEMY: Final = frozenset({"host", "port", "prepared_statement_cache_size"})

_INSTEAD: Final = {
    "application_name": "it is the service's name",
    "channel_binding": "the driver has none, and SCRAM is used without it",
    "connect_timeout": "a connection has ten seconds to be opened",
    "options": "set them for the role: ALTER ROLE … SET …",
}


def for_driver(url: URL, of_driver: Collection[str]) -> URL:
    """The URL as SQLAlchemy passes it on to asyncpg, whose ``connect`` has the parameters ``of_driver``.

    Raises:
        ConfigurationError: it has a parameter that nobody would read.
    """
    for name in url.query:
        if name not in _OF_DSN | _OF_SQLALCHEMY and (name in _INSTEAD or name not in of_driver):
            why = _INSTEAD.get(name, "sslmode and sslrootcert are such as may stand there")
            raise ConfigurationError(f"the database URL has the parameter {name[:40]!r}: leave it out; {why}")
    for name in sorted(_FILES & url.query.keys()):
        file = str(url.query[name])
        if not Path(file).is_file():
            raise ConfigurationError(f"the database URL has {name}={file[:200]}: there is no such file")
    dsn = {name: value for name, value in url.query.items() if name in _OF_DSN}
    if not dsn:
        return url
    return url.difference_update_query(dsn).update_query_dict({"dsn": f"postgresql://?{urlencode(dsn, doseq=True)}"})
