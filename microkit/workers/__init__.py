"""Several processes of one service on one port, and the one that looks after them."""

from microkit.workers.place import placed
from microkit.workers.supervisor import Supervisor

__all__ = ["Supervisor", "placed"]
