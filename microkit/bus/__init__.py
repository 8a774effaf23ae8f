"""The bus: a port, its adapters, and the consumer runtime above them."""

from microkit.bus.connect import connect
from microkit.bus.consumer import ConsumerRuntime, GroupProgress, Subscription
from microkit.bus.dead_letter import Bury, dead_letter
from microkit.bus.memory import MemoryBus
from microkit.bus.port import Bus, Consumer, Delivery, Promises, PublishFailed, Settles

__all__ = [
    "Bury",
    "Bus",
    "Consumer",
    "ConsumerRuntime",
    "Delivery",
    "GroupProgress",
    "MemoryBus",
    "Promises",
    "PublishFailed",
    "Settles",
    "Subscription",
    "connect",
    "dead_letter",
]
