"""The gateway: one address in front of a system's services."""

from microkit.gateway.bound import BoundGateway
from microkit.gateway.gateway import Gateway
from microkit.gateway.route import Route

__all__ = ["BoundGateway", "Gateway", "Route"]
