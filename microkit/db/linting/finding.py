"""What ``microkit migrate lint`` has to say of a statement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["breaks", "locks", "unread"]
"""An older running version does not survive it; it holds others up on PostgreSQL; it cannot be told what it does."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """``said`` is what would happen, ``instead`` what to do. ``rule`` names it, squawk's with ``squawk:`` before."""

    kind: Kind
    rule: str
    said: str
    instead: str


@dataclass(frozen=True, slots=True)
class Finding:
    """One judgement of one statement. ``accepted`` is the script's own sentence that takes it upon itself."""

    owner: str
    revision: str
    file: str
    statement: str
    judgement: Judgement
    accepted: str | None
