"""The gateway: one address in front of a system's services."""

from microkit.gateway.gateway import BoundGateway, Gateway
from microkit.gateway.route import Route

__all__ = ["BoundGateway", "Gateway", "Route"]
