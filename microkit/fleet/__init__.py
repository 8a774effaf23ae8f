"""A system in many processes on real servers: for a laptop that wants to be like production, and for drills.

:class:`Fleet` starts the servers that are not given (PostgreSQL, and Valkey or a Kafka broker), makes the databases,
and runs each copy of a service as a process of its own, ``microkit run SERVICE``. It starts again what ends unasked.
"""

from microkit.fleet.copies import Copy
from microkit.fleet.fleet import Fleet, Wanted

__all__ = ["Copy", "Fleet", "Wanted"]
