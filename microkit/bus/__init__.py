"""The bus: a port, its adapters, and the consumer runtime above them."""

from microkit.bus.connect import connect
from microkit.bus.consumer import Batching, ConsumerFailed, ConsumerRuntime, GroupProgress, Limits, Subscription
from microkit.bus.dead_letter import Bury, dead_letter
from microkit.bus.memory import MemoryBus
from microkit.bus.port import (
    Bus,
    Consumer,
    Delivery,
    Inspects,
    Lag,
    MessagesLost,
    Promises,
    PublishFailed,
    Removes,
    Revokes,
    Settles,
    ShowsLag,
    Stored,
    Topic,
)

__all__ = [
    "Batching",
    "Bury",
    "Bus",
    "Consumer",
    "ConsumerFailed",
    "ConsumerRuntime",
    "Delivery",
    "GroupProgress",
    "Inspects",
    "Lag",
    "Limits",
    "MemoryBus",
    "MessagesLost",
    "Promises",
    "PublishFailed",
    "Removes",
    "Revokes",
    "Settles",
    "ShowsLag",
    "Stored",
    "Subscription",
    "Topic",
    "connect",
    "dead_letter",
]
