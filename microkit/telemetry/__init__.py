"""Traces, metrics and logs of one service, behind OpenTelemetry's API and Prometheus' registry."""

from microkit.telemetry.ring import RecordedSpan, TraceRing
from microkit.telemetry.telemetry import Telemetry

__all__ = ["RecordedSpan", "Telemetry", "TraceRing"]
