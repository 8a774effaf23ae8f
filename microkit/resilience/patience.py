"""How long a request may wait for its turn: in a burst for long, under overload for hardly longer than the work takes.

What tells the two apart is what becomes of the queue. One that came at once, or belongs to clients that each wait for
their answer, is worked off: nobody in it waits for longer than ``patience``, and to refuse anybody would help nobody.
Where somebody would have to, more comes than is done. Then controlled delay, as Facebook runs it (Ben Maurer, "Fail at
Scale", ACM Queue 2015): as long as a queue stands, who has waited for ``tight`` is refused, so that what is let in is
answered at once and the rest knows at once.
"""

from __future__ import annotations

from typing import Final

LEAST: Final = 0.02
"""Seconds that a request may always wait for work that takes longer, or so short that to refuse it costs as much."""
CHEAP: Final = 0.001
"""Work of fewer seconds is such work."""
SHORTEST: Final = 0.005
"""Seconds that a request may always wait for work in between, which a queue would delay by many times its own time."""
FLOOD: Final = 0.25
"""Share of the requests; where more are refused it needs no look at the queue."""


class Patience:
    """``seconds`` is what may be waited at present, ``most`` what may be in a burst."""

    def __init__(self, most: float) -> None:
        self.most = self.seconds = most
        self.overloaded = False

    def lost(self, tight: float) -> None:
        """Somebody was refused, who had waited for too long. Where that was ``most``, this is overload."""
        if not self.overloaded:
            self.overloaded = True
            self.seconds = min(self.most, tight)

    def review(self, came: int, refused: int, tight: float, *, standing: bool) -> None:
        """To be asked for about ten times a second: so many came, and were refused, since the last time. ``standing``
        says that all the while there was a queue.

        Doubled and not restored: a moment without a queue does not mean that the overload is over.
        """
        if not self.overloaded:
            return
        tight = min(self.most, tight)
        if standing or refused > FLOOD * came:
            self.seconds = tight
        elif (longer := 2 * max(self.seconds, tight)) < self.most:
            self.seconds = longer
        else:
            self.calm()

    def calm(self) -> None:
        """It is over."""
        self.overloaded = False
        self.seconds = self.most


def tolerated(service: float) -> float:
    """Seconds that a request may wait in a standing queue, for work that takes ``service`` seconds."""
    if service < CHEAP:
        return LEAST
    return max(service, min(LEAST, max(SHORTEST, 2 * service)))
