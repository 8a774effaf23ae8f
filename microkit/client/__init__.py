"""Typed calls to other services: over HTTP, or in process in tests."""

from microkit.client.connect import connect
from microkit.client.http import HttpCaller
from microkit.client.in_process import InProcessCaller
from microkit.client.session import open_session

__all__ = ["HttpCaller", "InProcessCaller", "connect", "open_session"]
