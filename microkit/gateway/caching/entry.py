"""One answer that is kept, and the validators by which it is known again."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from typing import Self

import orjson

from microkit.gateway.exchange import Headers


@dataclass(frozen=True, slots=True)
class Entry:
    """Times in seconds: ``stored_at`` by the wall clock, ``age`` what it had by then, ``lifetime`` and ``grace`` from
    when it was made and from when it became stale."""

    status: int
    headers: Headers
    body: bytes
    stored_at: float
    age: float
    lifetime: float
    grace: float

    @property
    def size(self) -> int:
        return 200 + len(self.body) + sum(len(name) + len(value) for name, value in self.headers)

    @property
    def etag(self) -> bytes | None:
        return next((value for name, value in self.headers if name == b"etag"), None)

    def age_at(self, now: float) -> float:
        """Seconds since it was made, 0 at least: clocks are set back."""
        return self.age + max(0.0, now - self.stored_at)

    def dumps(self) -> bytes:
        """As text for a store outside."""
        return orjson.dumps(
            [
                self.status,
                [[name.decode("latin-1"), value.decode("latin-1")] for name, value in self.headers],
                base64.b64encode(self.body).decode(),
                self.stored_at,
                self.age,
                self.lifetime,
                self.grace,
            ]
        )

    @classmethod
    def loads(cls, text: bytes) -> Self:
        """What :meth:`dumps` wrote.

        Raises:
            ValueError: it is something else.
        """
        status, headers, body, *times = orjson.loads(text)
        pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        return cls(status, pairs, base64.b64decode(body, validate=True), *times)


def etag_of(body: bytes) -> bytes:
    """An entity tag of the bytes."""
    return b'"mk-%s"' % hashlib.blake2b(body, digest_size=12).hexdigest().encode()


def etag_matches(header: bytes, etag: bytes) -> bool:
    """Whether ``If-None-Match`` names the tag, by the weak comparison (RFC 9110, 13.1.2)."""
    if header.strip() == b"*":
        return True
    plain = etag.removeprefix(b"W/")
    return any(one.strip().removeprefix(b"W/") == plain for one in header.split(b","))
