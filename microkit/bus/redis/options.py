"""What can be set about the Redis adapter, in the URL or by hand."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final, Self
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from microkit.errors import ConfigurationError
from microkit.settings.quantities import seconds

SHORTEST_LEASE: Final = 0.5


@dataclass(frozen=True, slots=True)
class RedisOptions:
    """``redis://host:6379/0?partitions=16&lease=20s&keep=50000&prefix=shop``; other parameters are redis-py's.

    ``partitions``: into how many streams the keys of a new topic are spread; it bounds the members of a group that
    work at once. What a topic began with stays, whatever is written here later. ``lease``: seconds after which the
    partitions of a member that fell silent go to others; a handler may take longer, as long as it does not block the
    event loop. ``keep``: how many done messages a partition keeps for groups that are yet to come. ``prefix``: begins
    the names of all keys.

    Raises:
        ConfigurationError: one of them is out of its range.
    """

    partitions: int = 8
    lease: float = 10.0
    keep: int = 10_000
    prefix: str = "microkit"

    def __post_init__(self) -> None:
        if not 1 <= self.partitions <= 1024:
            raise ConfigurationError("bus_url: partitions is from 1 to 1024; write redis://redis:6379/0?partitions=8")
        if self.lease < SHORTEST_LEASE:
            raise ConfigurationError(f"bus_url: lease is at least {SHORTEST_LEASE:g}s; write ?lease=10s")
        if self.keep < 0:
            raise ConfigurationError("bus_url: keep is not negative; write ?keep=10000")

    @classmethod
    def of(cls, url: str) -> tuple[Self, str]:
        """The options in a URL, and the URL without them.

        Raises:
            ConfigurationError: one cannot be read.
        """
        usual, parts = cls(), urlsplit(url)
        database = parts.path.strip("/")
        if database and not database.isdigit():  # redis-py would leave it alone, and a "/" in a password ends here
            raise ConfigurationError(
                "bus_url: behind the host stands the number of a database; write redis://user:password@redis:6379/0, "
                "with what is special in the password percent-encoded"
            )
        names = {field.name for field in fields(cls)}
        query = parse_qsl(parts.query, keep_blank_values=True)
        own = {name: value for name, value in query if name in names}
        rest = urlunsplit(parts._replace(query=urlencode([item for item in query if item[0] not in names])))
        try:
            return cls(
                partitions=int(own.get("partitions", usual.partitions)),
                lease=seconds(own.get("lease", usual.lease)),
                keep=int(own.get("keep", usual.keep)),
                prefix=own.get("prefix", usual.prefix),
            ), rest
        except ValueError as error:
            raise ConfigurationError(f"bus_url: {error}; write redis://redis:6379/0?partitions=8&lease=10s") from None
