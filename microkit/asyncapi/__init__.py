"""The AsyncAPI 3 document of services, from the same declarations that publish and handle their events."""

from microkit.asyncapi.document import document
from microkit.asyncapi.servers import server

__all__ = ["document", "server"]
