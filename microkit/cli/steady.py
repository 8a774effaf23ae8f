"""What is set once everything has started: how often the garbage collector walks."""

from __future__ import annotations

import gc
from typing import Final

YOUNG: Final = 10_000
"""Objects that may be new before the youngest are looked through.

Python 3.11 has 700, which a few dozen requests under way are by themselves: it then walks them every twenty requests,
finds nothing, and takes a tenth of the time. Ten thousand cost some megabytes at most until a cycle is found.
"""


def settle() -> None:
    """Takes what start-up made out of the garbage collection, as it stays for good, and lets new objects gather."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, 10, 10)
