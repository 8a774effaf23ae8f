"""Flows that nobody orchestrates, followed by their events: where is this booking, and is it stuck?"""

from microkit.choreography.following import follower
from microkit.choreography.keeper import ProcessKeeper
from microkit.choreography.metrics import ProcessMetrics
from microkit.choreography.process import Process

__all__ = ["Process", "ProcessKeeper", "ProcessMetrics", "follower"]
