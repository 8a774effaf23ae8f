"""Typed calls to other services: over HTTP, or in process in tests; and what guards them.

:class:`HttpCaller` carries out calls to one service, through the :class:`Upstream` that knows its instances.
"""

from microkit.client.connect import connect
from microkit.client.http import HttpCaller
from microkit.client.in_process import InProcessCaller
from microkit.client.policy import Policies
from microkit.client.session import open_session
from microkit.client.upstream import Chosen, Guard, Outcome, Upstream, outcome_of

__all__ = [
    "Chosen",
    "Guard",
    "HttpCaller",
    "InProcessCaller",
    "Outcome",
    "Policies",
    "Upstream",
    "connect",
    "open_session",
    "outcome_of",
]
