"""The HTTP side of a service: an ASGI application with everything around a handler, and the server that runs it."""

from microkit.web.app import WebApp
from microkit.web.health import Health, State
from microkit.web.limits import Limits
from microkit.web.route import InlineRoute, Mount, Surface
from microkit.web.server import Server

__all__ = ["Health", "InlineRoute", "Limits", "Mount", "Server", "State", "Surface", "WebApp"]
