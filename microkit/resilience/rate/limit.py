"""A limit, and what came of asking whether there is room within it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address
from typing import Final, Literal, NamedTuple, Self

from microkit.errors import DefinitionError

By = Literal["principal", "address", "everybody"]

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_RATE: Final = re.compile(r"(\d{1,9})/(\d{0,9}(?:\.\d{1,3})?)(ms|s|m|h|d)")
_WRITE: Final = "write 10/60s, 100/s burst=200, 5/m by=address or 5/m away=local"


@dataclass(frozen=True, slots=True)
class Limit:
    """``Limit(10, per=60)``: ten requests a minute, and ten at once after a quiet minute.

    A token bucket: it holds ``burst`` tokens (``requests`` where that is not said) and gets ``requests`` new ones each
    ``per`` seconds, one by one. So in any ``t`` seconds at most ``burst + requests * t / per`` pass.

    ``by`` says whose bucket it is: the ``principal``'s (the ``address``'s where nobody is signed in), the client's
    ``address``, or one for ``everybody``. ``away`` is what happens while the store that counts for all instances cannot
    be asked: ``"open"`` lets everything pass, ``"local"`` goes on counting in each instance. Take ``"local"`` for
    whatever can be guessed: log-ins, one-time passwords, coupons.

    Raises:
        DefinitionError: a number is not positive, or there is no such bucket.
    """

    requests: int
    per: float = 1.0
    burst: int = 0
    by: By = "principal"
    away: Literal["open", "local"] = "open"
    spacing: float = field(init=False, repr=False, compare=False)
    """Seconds in which a token comes."""
    capacity: float = field(init=False, repr=False, compare=False)
    """Seconds in which an empty bucket fills."""

    def __post_init__(self) -> None:
        if self.requests < 1 or not 0 < self.per < math.inf or self.burst < 0:
            raise DefinitionError(f"{self} limits nothing: write Limit(10, per=60), with positive numbers")
        if self.by not in {"principal", "address", "everybody"} or self.away not in {"open", "local"}:
            raise DefinitionError(f'{self}: by is "principal", "address" or "everybody", away is "open" or "local"')
        object.__setattr__(self, "per", float(self.per))
        object.__setattr__(self, "burst", self.burst or self.requests)
        object.__setattr__(self, "spacing", self.per / self.requests)
        object.__setattr__(self, "capacity", self.burst * self.per / self.requests)

    @classmethod
    def parse(cls, text: str) -> Self:
        """A limit as settings write it: ``10/60s``, ``100/s burst=200 by=address away=local``.

        Raises:
            ValueError: it is none.
        """
        rate, *words = text.split() or [""]
        found = _RATE.fullmatch(rate)
        options = dict(word.partition("=")[::2] for word in words)
        if found is None or len(options) != len(words) or not options.keys() <= {"burst", "by", "away"}:
            raise ValueError(f"{text!r} is no limit: {_WRITE}")
        number, count, unit = found.groups()
        burst = options.pop("burst", "0")
        try:
            return cls(int(number), float(count or 1) * _UNITS[unit], int(burst), **options)  # type: ignore[arg-type]  # checked there
        except (DefinitionError, ValueError) as error:
            raise ValueError(f"{text!r} is no limit ({error}): {_WRITE}") from None


class Verdict(NamedTuple):
    """What a limiter says. ``remaining`` are the tokens left, ``reset`` the seconds until the bucket is full again,
    ``retry_after`` the seconds until there are enough tokens (0 where there were). ``counted`` is false where the store
    could not be asked and the limit lets pass."""

    allowed: bool
    limit: Limit
    remaining: int
    reset: float
    retry_after: float = 0.0
    counted: bool = True


def network_of(address: str) -> str:
    """Whose an address is: of IPv6 its /64, which is what one household gets, and can change within at will."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    if not isinstance(parsed, IPv6Address):
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return f"{IPv6Address(int(parsed) >> 64 << 64)}/64"


_DUST: Final = 1e-6
"""Seconds that arithmetic with fractions may be off."""


def fits(limit: Limit, ahead: float, cost: int) -> bool:
    """Whether ``cost`` tokens are in a bucket that needs ``ahead`` seconds to be full."""
    return ahead + cost * limit.spacing <= limit.capacity + _DUST


def verdict(limit: Limit, ahead: float, cost: int, *, allowed: bool) -> Verdict:
    """``ahead`` is how many seconds the bucket needs to be full, after ``cost`` was taken where that was allowed."""
    remaining = max(0, int((limit.capacity - ahead + _DUST) / limit.spacing))
    wait = 0.0 if allowed else max(0.0, ahead + cost * limit.spacing - limit.capacity)
    return Verdict(allowed, limit, remaining, ahead, wait)
