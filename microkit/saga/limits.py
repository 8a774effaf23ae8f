"""How many sagas of one definition, or on one key, may be at work, and how often they may begin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

from microkit.errors import DefinitionError

OnBusy = Literal["wait", "refuse"]

KeyOf = Callable[[Any], str]
"""A plain function of the state: what the saga is about, such as ``bill:42``."""

LONGEST_KEY: Final = 200


@dataclass(frozen=True, slots=True)
class Rate:
    """``starts`` sagas in ``per`` seconds, in even distances, but ``burst`` of them at once after a quiet time.

    ``each="key"`` counts the sagas of one key, ``"name"`` all of the definition. It is a token bucket, kept as the
    time when it is full again (the *generic cell rate algorithm* of ITU-T I.371), on the database's clock.

    Raises:
        DefinitionError: a number is none of these.
    """

    starts: float
    per: float = 1.0
    burst: int = 1
    each: Literal["name", "key"] = "name"

    def __post_init__(self) -> None:
        if not (0 < self.starts < float("inf") and 0 < self.per < float("inf")) or self.burst < 1:
            raise DefinitionError(
                f"{self}: starts and seconds above 0, and a burst of at least 1, such as Rate(10, per=1)"
            )
        if self.each not in ("name", "key"):
            raise DefinitionError(f'{self}: each is "name" or "key"')

    @property
    def interval(self) -> float:
        """Seconds between two starts."""
        return self.per / self.starts


@dataclass(frozen=True, slots=True)
class Limits:
    """What a definition says of how many of its sagas may be at work. ``key`` is a semantic lock: one saga at a time
    has it, from its start to its end; the next one waits for it, or is refused."""

    key: KeyOf | None = None
    on_busy: OnBusy = "wait"
    concurrency: int | None = None
    rate: Rate | None = None

    def key_of(self, saga: str, state: Any) -> str | None:
        """The key of a saga that starts with ``state``; ``None`` where its definition has none.

        Raises:
            ValueError: it is no text that can be a key.
        """
        if self.key is None:
            return None
        key: Any = self.key(state)
        if not isinstance(key, str) or not 0 < len(key) <= LONGEST_KEY or not key.isprintable():
            raise ValueError(
                f"{saga}: key= gave {key!r:.100}; a key is text of 1 to {LONGEST_KEY} printable characters"
            )
        return str(key)
