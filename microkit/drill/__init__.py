"""Restarts of a running system under load, and what came of them: :class:`Drill`."""

from microkit.drill.drill import Drill, Plan
from microkit.drill.load import Door, Load, Outgoing, Verdict
from microkit.drill.report import Report

__all__ = ["Door", "Drill", "Load", "Outgoing", "Plan", "Report", "Verdict"]
